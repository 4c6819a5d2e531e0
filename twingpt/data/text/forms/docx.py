"""DOCX, read with mammoth: it knows inserted and deleted text, content controls, notes, lists and tables."""

from collections.abc import Iterator
from typing import IO

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.text.forms.form import ReadAs, ZippedForm


def _read(file: IO[bytes], read_as: ReadAs) -> Iterator[str]:
    import mammoth

    from twingpt.data.text.forms.web_page import laid_out

    # A picture would come as base64 that nobody reads.
    no_picture = mammoth.images.img_element(lambda image: {"src": ""})
    try:
        html = mammoth.convert_to_html(file, convert_image=no_picture).value
    except Exception as error:
        # The library has no error of its own: a damaged part is a KeyError, an ExpatError, a BadZipFile.
        raise TwinGPTError(
            tr("{name} is damaged, it cannot be read as DOCX: {error!r}", name=read_as.name, error=error)
        ) from None
    yield laid_out(f"<body>{html}</body>")


DOCX = ZippedForm("DOCX", "word/document.xml", _read)
