"""The prompt of a question in the languages of other programs: a chat template, and Ollama's recipe."""

import json
from importlib import resources

from twingpt.core.sampling import Sampling
from twingpt.data.tokens.marks import (
    ANSWER,
    DOC,
    END_ANSWER,
    END_QUESTION,
    EOS,
    QUESTION,
    SPECIAL_TOKENS,
    Template,
)

GUARD = "\u2060"
"""An invisible character that `prepare` takes out of every text, so that no text of ours needs it."""


def chat_template(guard: str) -> str:
    """The Jinja template that makes of a conversation the prompt that twingpt's own server makes of it.

    guard: parts a mark that somebody typed, so that it is read as text: GUARD where the tokenizer takes it out again.
    """
    text = resources.files("twingpt.interchange").joinpath("chat_template.jinja").read_text(encoding="utf-8")
    return text.replace("MARKS", json.dumps(SPECIAL_TOKENS)).replace("'[GUARD'", f"'[{guard}'").strip()


# Ollama writes the messages one after another by itself. The last one alone is asked, and of the system messages what
# begins with [DOC] is a document. Its language has no way to part a mark that was typed.
_OLLAMA_QUESTION = (
    "{{- range $i, $_ := .Messages }}"
    '{{- if and (eq .Role "user") (eq (len (slice $.Messages $i)) 1) }}'
    f"{QUESTION}{{{{ .Content }}}}{END_QUESTION}"
    f'{{{{- if and $.System (ge (len $.System) {len(DOC)}) }}}}{{{{- if eq (slice $.System 0 {len(DOC)}) "{DOC}" }}}}'
    "{{ $.System }}{{- end }}{{- end }}"
    f"{ANSWER}"
    "{{- end }}{{- end }}"
)
_OLLAMA_TEXT = "{{ .Prompt }}"


def modelfile(gguf_file: str, block_size: int, template: Template) -> str:
    """Ollama's recipe beside the file. Ollama puts [BOS] before the prompt by itself."""
    usual = Sampling()
    prompt, stops = (_OLLAMA_TEXT, (EOS,)) if template == "plain" else (_OLLAMA_QUESTION, (END_ANSWER, EOS))
    return (
        f"FROM ./{gguf_file}\n"
        f'TEMPLATE """{prompt}"""\n'
        + "".join(f'PARAMETER stop "{stop}"\n' for stop in stops)
        + f"PARAMETER num_ctx {block_size}\n"
        # Beyond the context there is nothing that the model has learned.
        f"PARAMETER num_predict {block_size}\n"
        f"PARAMETER temperature {usual.temperature}\n"
        f"PARAMETER top_k {usual.top_k}\n"
        f"PARAMETER top_p {usual.top_p}\n"
        f"PARAMETER repeat_penalty {usual.repetition_penalty}\n"
    )
