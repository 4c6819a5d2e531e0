"""Links between machines, with what TCP gets out of them in practice.

Ethernet: 1,448 bytes of each 1,538 that pass the wire are payload (MTU 1500 with TCP timestamps, preamble and gap
included). Thunderbolt 4: 16.2 and 16.4 Gbit/s of TCP one way between two machines on a cable that links at 20 Gbit/s
(swellweb/targetBridge issue 110; jiribrejcha.net, "Direct 20 Gbps connection between Mac and Windows 11"), a little
less here as gradients go both ways at once. Thunderbolt 5: an estimate, twice that; no figure for TCP was found (RDMA
gets 75 Gbit/s through the same cable, hellas-ai/thunderbolt-ibverbs pull request 27). Its round trips took 0.38 to 0.95
ms (exo-explore/exo issue 2295), TCP's way there about 0.3 ms (jeffgeerling.com, "1.5 TB of VRAM on Mac Studio").
Wi-Fi: a MacBook Pro got 0.758 Gbit/s of Wi-Fi 6 beside the router (Jarrod's Tech, told at macitynet.it); from one
wireless machine to another every byte is on the air twice, so half of it; round trips of 4.9 to 54 ms (the same exo
issue). Ethernet's latencies are estimates.
"""

from dataclasses import dataclass

from twingpt.core.errors import UsageError
from twingpt.core.language import tr


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """gbits: payload of TCP a second in each direction, in Gbit. latency_ms: from one process to the other.

    shared: all directions of all machines share it, as they do the air.
    """

    name: str
    title: str
    gbits: float
    latency_ms: float
    shared: bool = False
    estimate: bool = False


LINKS: dict[str, Link] = {
    link.name: link
    for link in (
        Link(name="thunderbolt5", title="Thunderbolt 5", gbits=30.0, latency_ms=0.3, estimate=True),
        Link(name="thunderbolt4", title="Thunderbolt 4", gbits=15.0, latency_ms=0.3),
        Link(name="10gbe", title="10 Gbit Ethernet", gbits=9.41, latency_ms=0.1),
        Link(name="1gbe", title="1 Gbit Ethernet", gbits=0.941, latency_ms=0.15),
        Link(name="wifi", title="Wi-Fi", gbits=0.38, latency_ms=5.0, shared=True),
    )
}


def find_link(name: str) -> Link:
    """Raises UsageError for a name that is no link."""
    link = LINKS.get(name.lower())
    if link is None:
        raise UsageError(
            tr(
                "unknown link {name!r}: choose one of {choices}, or give --bandwidth",
                name=name,
                choices=", ".join(LINKS),
            )
        )
    return link


def own_link(bandwidth: float, latency: float) -> Link:
    """A link that the user measured. bandwidth: Gbit/s; latency: ms."""
    return Link(name="own", title=f"{bandwidth:g} Gbit/s, {latency:g} ms", gbits=bandwidth, latency_ms=latency)
