"""CLIP's tokenizer, and the cutting of captions into chunks of 75 tokens as the WebUI cuts prompts.

One tokenizer serves every text encoder in use. It is built from the vocabulary beside this file with the `tokenizers` package
alone, so that the ids do not change with the version of transformers. Source: CLIP, arXiv 2103.00020, its byte-pair encoding.
No torch, and the package is imported at the first text: the page counts tokens, too.
"""

from __future__ import annotations

import functools
import html
import json
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_DIR = Path(__file__).with_name("clip_tokenizer")
"""Vocabulary, merges and configuration as transformers' `CLIPTokenizer.from_pretrained` reads them."""

START_TOKEN = 49406
END_TOKEN = 49407
COMMA_TOKEN = 267
CHUNK_TOKENS = 75
MAX_CHUNKS = 3
COMMA_BACKTRACK = 20
"""How far the WebUI looks back for a comma when a chunk is full: its default `comma_padding_backtrack`."""

# CLIP repairs its texts with the package ftfy. Of that, what concerns text that is already proper Unicode: straight quotes, plain
# letters for ligatures and full-width ones, no control characters.
_LIGATURES = (*range(0xFB00, 0xFB07), *range(0x132, 0x134), *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4))
_WIDE = tuple(code for code in (0x3000, *range(0xFF01, 0xFFF0)) if unicodedata.category(chr(code)) != "Cn")
_CONTROLS = (*range(0x9), 0xB, *range(0xE, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))
_REPLACEMENTS = (
    {ord(quote): "'" for quote in "\u02bc\u2018\u2019\u201a\u201b"}
    | {ord(quote): '"' for quote in "\u201c\u201d\u201e\u201f"}
    | {code: unicodedata.normalize("NFKC", chr(code)) for code in (*_LIGATURES, *_WIDE)}
    | dict.fromkeys(_CONTROLS, "")
    | {0x149: "'n"}
)
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def encode(text: str) -> list[int]:
    """Returns the token ids of a text, without start and end."""
    return load_tokenizer().encode(_clean(text), add_special_tokens=False).ids


def count_tokens(text: str) -> int:
    """Returns the number of tokens of a text. Up to 75 fill one chunk."""
    return len(encode(text))


def count_cut_tokens(text: str) -> int:
    """Returns how many tokens of a text do not fit in three chunks and are not trained on; 0 for most texts."""
    return sum(len(chunk) for chunk in _cut(encode(text))[MAX_CHUNKS:])


def split_chunks(text: str) -> list[list[int]]:
    """Returns one to three chunks of up to 75 token ids, without start, end and padding."""
    return _cut(encode(text))[:MAX_CHUNKS]


def frame_chunk(tokens: list[int], pad_token: int) -> list[int]:
    """Returns a chunk as the encoder takes it: start, tokens, end, padding; 77 ids."""
    return [START_TOKEN, *tokens, END_TOKEN, *[pad_token] * (CHUNK_TOKENS - len(tokens))]


@functools.lru_cache(maxsize=1)
def load_tokenizer() -> Tokenizer:
    """Returns the tokenizer, read once."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    with open(TOKENIZER_DIR / "vocab.json", encoding="utf-8") as file:
        vocabulary = json.load(file)
    with open(TOKENIZER_DIR / "merges.txt", encoding="utf-8") as file:
        # Not splitlines: some merges hold characters that it takes for ends of lines.
        lines = file.read().split("\n")
    merges = [
        (first, second)
        for line in lines
        if line and not line.startswith("#version")
        for first, _, second in [line.partition(" ")]
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token="<|endoftext|>",
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return tokenizer


def _clean(text: str) -> str:
    return html.unescape(html.unescape(text.translate(_REPLACEMENTS)))


def _cut(tokens: list[int]) -> list[list[int]]:
    """Cuts tokens into chunks of at most 75; a chunk that fills up within 20 tokens of a comma ends at that comma."""
    chunks: list[list[int]] = [[]]
    for token in tokens:
        if len(chunks[-1]) == CHUNK_TOKENS:
            moved: list[int] = []
            if token != COMMA_TOKEN and COMMA_TOKEN in chunks[-1]:
                after_comma = CHUNK_TOKENS - chunks[-1][::-1].index(COMMA_TOKEN)
                if CHUNK_TOKENS - (after_comma - 1) <= COMMA_BACKTRACK:
                    chunks[-1], moved = chunks[-1][:after_comma], chunks[-1][after_comma:]
            chunks.append(moved)
        chunks[-1].append(token)
    return chunks
