"""Measuring both engines on this machine: what `twingpt bench` and `twingpt tune` run."""
