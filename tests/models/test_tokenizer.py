"""Token ids against CLIP's own, and chunks against the WebUI's rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from lora_trainer.models import tokenizer

# Ids made with CLIP's original tokenizer (byte-pair file of 2021, with ftfy 6).
GOLDEN = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "it’s “quoted” — dash…": [585, 568, 257, 27706, 257, 2005, 10206, 959],
    "水墨画，远山": [162, 108, 112, 161, 95, 101, 20211, 375, 267, 164, 123, 250, 46096, 365],
    "naïve café ÀÉ": [1097, 35689, 563, 15304, 36149, 4166],
    "1girl, solo, (best quality:1.2), masterpiece": [272, 1611, 267, 5797, 267, 263, 949, 3027, 281, 272, 269, 273, 2361, 12066],
    "&amp; &lt;tag&gt;": [261, 283, 3640, 285],
    "emoji 🙂🎨": [16327, 32006, 13461],
    "  many\n\nspaces\tand\u3000wide": [1346, 9006, 537, 3184],
    "ﬁne ﬂow": [3797, 5608],
    "ＦＵＬＬ\u3000ｗｉｄｔｈ！": [1476, 23571, 256],
    "don't we'll I'M": [847, 713, 649, 1342, 328, 880],
    "Привет мир": [26302, 16370, 29503, 110, 22176, 141, 480, 38018, 16701, 141, 478],
    "3.14159 x10^5": [274, 269, 272, 275, 272, 276, 280, 343, 272, 271, 317, 276],
    "~!@#$%^&*()_+": [93, 0, 31, 2, 3, 4, 61, 5, 9, 7, 8, 62, 266],
    "İstanbul ŞIK": [328, 16384, 11231, 21254, 10177],
    "ㅎ한국어": [5947, 236, 15197, 250, 31871, 255, 31625, 368],
    "½ ² ①": [33613, 41175, 158, 239, 510],
    "Ⅳ IV": [158, 227, 367, 9315],
    "_underscore_ snake_case": [318, 1473, 4431, 318, 8798, 318, 2068],
    "\u200bzero width": [9844, 5848, 23571],
    "日本語、テスト。": [39121, 44353, 34002, 508, 45262, 2429, 228, 32421, 486, 38000],
    "ｱｲｳ": [26560, 19319, 3909, 355],
    "a，b；c：d": [320, 267, 321, 282, 322, 281, 323],
    "rock 'n' roll 'S": [2172, 262, 333, 262, 3341, 568],
}
WORD, COMMA = 2368, 267


@pytest.mark.hosts
@pytest.mark.parametrize("text", GOLDEN)
def test_ids_are_those_of_clips_own_tokenizer(text: str) -> None:
    assert tokenizer.encode(text) == GOLDEN[text]


@pytest.mark.hosts
def test_the_folder_loads_as_transformers_tokenizer_with_the_same_ids() -> None:
    theirs = CLIPTokenizer.from_pretrained(tokenizer.TOKENIZER_DIR, local_files_only=True)
    # Without ftfy, transformers 4 cuts words at punctuation, which CLIP does not: "don't" is no test of the folder.
    for text in ("a photo of a cat", "vertical scroll composition, expressive stroke, 1girl"):
        ids = theirs(text).input_ids
        assert ids == [tokenizer.START_TOKEN, *tokenizer.encode(text), tokenizer.END_TOKEN]
    assert theirs.pad_token_id == tokenizer.END_TOKEN


def test_comma_token_is_the_comma() -> None:
    assert tokenizer.encode(",") == [tokenizer.COMMA_TOKEN]


def test_an_empty_caption_is_one_empty_chunk() -> None:
    assert tokenizer.split_chunks("") == [[]]
    assert tokenizer.frame_chunk([], 0) == [49406, 49407, *[0] * 75]


def test_seventy_five_tokens_fill_one_chunk_and_one_more_begins_another() -> None:
    assert [len(chunk) for chunk in tokenizer.split_chunks("cat " * 75)] == [75]
    assert [len(chunk) for chunk in tokenizer.split_chunks("cat " * 76)] == [75, 1]


def test_a_full_chunk_ends_at_a_comma_that_is_near() -> None:
    assert [len(chunk) for chunk in tokenizer.split_chunks("cat " * 60 + ", " + "dog " * 20)] == [61, 20]
    # 20 tokens back is near enough, 21 is not.
    assert [len(chunk) for chunk in tokenizer.split_chunks("cat " * 55 + ", " + "dog " * 20)] == [56, 20]
    assert [len(chunk) for chunk in tokenizer.split_chunks("cat " * 54 + ", " + "dog " * 21)] == [75, 1]
    # A comma as 76th token goes to the next chunk, without moving anything.
    assert [len(chunk) for chunk in tokenizer.split_chunks("cat " * 60 + ", " + "dog " * 14 + ", dog")] == [75, 2]


def test_what_three_chunks_do_not_hold_is_cut_and_counted() -> None:
    caption = "cat " * 230
    assert tokenizer.count_tokens(caption) == 230
    assert sum(map(len, tokenizer.split_chunks(caption))) == 225
    assert tokenizer.count_cut_tokens(caption) == 5
    assert tokenizer.count_cut_tokens("cat " * 225) == 0


def _webui_chunks(tokens: list[int]) -> list[list[int]]:
    """The WebUI's rule, token by token, written from its description."""
    chunks, chunk, last_comma = [], [], -1
    for token in tokens:
        if token == COMMA:
            last_comma = len(chunk)
        elif len(chunk) == 75 and last_comma != -1 and len(chunk) - last_comma <= 20:
            chunks.append(chunk[: last_comma + 1])
            chunk, last_comma = chunk[last_comma + 1 :], -1
        if len(chunk) == 75:
            chunks.append(chunk)
            chunk, last_comma = [], -1
        chunk.append(token)
    return [*chunks, chunk] if chunk or not chunks else chunks


@given(st.lists(st.sampled_from([WORD, WORD, WORD, WORD, WORD, WORD, COMMA]), max_size=400))
def test_chunks_follow_the_webuis_rule(tokens: list[int]) -> None:
    ours = tokenizer._cut(tokens)
    assert [token for chunk in ours for token in chunk] == tokens
    assert all(len(chunk) <= 75 for chunk in ours)
    assert ours == _webui_chunks(tokens)
