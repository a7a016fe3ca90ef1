"""A LoRA's name must survive the prompt's syntax, the WebUI's tables and every file system."""

from __future__ import annotations

import pytest

from lora_trainer.adapters.names import MAX_NAME_BYTES, check_output_name, split_step_name, step_file_name


@pytest.mark.parametrize("name", ["ink", "guofeng ink 1.5", "国风水墨", "a-b_c.d", "x" * MAX_NAME_BYTES, "console", "nonesuch"])
def test_good_names_pass(name: str) -> None:
    assert check_output_name(name) is None


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("", "empty"),
        ("  ", "empty"),
        *((f"a{character}b", f"contains {character}") for character in ':,<>={}/\\|?*"'),
        ("a\nb", "cannot be printed"),
        ("a\udc80b", "cannot be printed"),
        (" a", "a space"),
        ("a.", "ends with a dot"),
        (".hidden", "starts with a dot"),
        ("none", "keeps the name 'none'"),
        ("Addams", "keeps the name 'Addams'"),
        ("NONE", "keeps the name 'NONE'"),
        ("con", "device on Windows"),
        ("Com1.v2", "device on Windows"),
        ("墨" * 61, "takes 183 bytes; at most 180"),
    ],
)
def test_bad_names_are_named_with_their_fault(name: str, found: str) -> None:
    problem = check_output_name(name)
    assert problem is not None
    assert found in problem.message
    assert problem.field == "output_name"
    assert problem.hint


def test_step_names_go_there_and_back() -> None:
    assert step_file_name("ink", 100) == "ink-step00000100"
    assert split_step_name("ink-step00000100") == ("ink", 100)
    assert split_step_name("ink-step2") == ("ink-step2", None)
    assert split_step_name("ink") == ("ink", None)


def test_the_longest_name_fits_a_file_system_with_step_and_other_marks() -> None:
    longest = f"{step_file_name('x' * MAX_NAME_BYTES, 123456789)}.new-1.safetensors"
    assert len(longest) <= 255
