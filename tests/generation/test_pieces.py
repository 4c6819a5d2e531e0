import pytest

from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.pieces import TextWriter

TEXT = "여권을 잃어버렸을 때는 먼저 경찰서에 갑니다. 끝"


def write(tokenizer: Tokenizer, text: str, stops: tuple[str, ...]) -> tuple[list[str], bool]:
    writer = TextWriter(tokenizer, stops)
    shown = []
    for byte in text.encode():  # one token a byte: the hardest cut there is
        piece = writer.push(
            tokenizer.encode(bytes([byte]).decode("latin-1"))[0] if byte < 128 else _byte(tokenizer, byte), None
        )
        if piece is not None:
            shown.append(piece.text)
        if writer.stopped:
            return shown, True
    if (piece := writer.finish()) is not None:
        shown.append(piece.text)
    return shown, False


def _byte(tokenizer: Tokenizer, byte: int) -> int:
    return next(token for token in range(tokenizer.vocab_size) if tokenizer.token_text(token) == bytes([byte]))


def test_text_comes_in_whole_characters(tokenizer: Tokenizer) -> None:
    shown, stopped = write(tokenizer, TEXT, ())
    assert shown == list(TEXT)
    assert not stopped


@pytest.mark.parametrize("stop", ["경찰서", "갑니다. 끝", "때", "여", "끝"])
def test_a_stop_sequence_and_what_follows_never_show(tokenizer: Tokenizer, stop: str) -> None:
    shown, stopped = write(tokenizer, TEXT, ("없는 말", stop))
    assert stopped
    assert "".join(shown) == TEXT[: TEXT.index(stop)]


def test_the_start_of_a_stop_sequence_shows_once_it_turns_out_to_be_none(tokenizer: Tokenizer) -> None:
    shown, stopped = write(tokenizer, TEXT, ("경찰서로", "aab"))
    assert not stopped
    assert "".join(shown) == TEXT
    # Held back while it was unclear: the three characters come together with the one that decides.
    assert "경찰서에" in shown
    assert write(tokenizer, "xaaab", ("aab",)) == (["x", "a"], True)


def test_a_character_that_never_became_whole_ends_as_a_replacement(tokenizer: Tokenizer) -> None:
    writer = TextWriter(tokenizer, ())
    assert writer.push(_byte(tokenizer, 0xEC), None) is None
    piece = writer.finish()
    assert piece is not None
    assert piece.text == "\ufffd"
