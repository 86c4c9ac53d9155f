"""Tables in a terminal and in a pipe: nothing is cut off."""

from __future__ import annotations

import pytest

from blockllm.cli import output

NAME = "a-rather-long-name-of-a-fine-tune-of-last-week"


def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int | None
) -> list[str]:
    monkeypatch.setattr(output, "terminal_width", lambda: width)
    table = output.make_table("model", "kind", "context", "base", "shared with", "size")
    others = ", ".join(f"model-{i}" for i in range(40))
    table.add_row(NAME, "lora", "131072", NAME + "-base", others, "12.3 MB")
    output.print_table(table, ("context", "kind"))
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [None, 400, 160, 132, 120, 80, 20])
def test_names_and_sizes_are_never_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int | None
):
    lines = printed(monkeypatch, capsys, width)
    (row,) = [line for line in lines if "12.3 MB" in line]
    assert NAME in row and NAME + "-base" in row
    text = "\n".join(lines)
    assert "…" not in text
    assert all(f"model-{i}" in text for i in range(40))


def test_a_narrow_terminal_shows_fewer_columns_and_names_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    lines = printed(monkeypatch, capsys, 131)
    assert lines[-1] == "not shown on 131 columns: context (--json has them)"
    assert all(len(line) <= 131 for line in lines)
    assert "lora" in "\n".join(lines) and "131072" not in "\n".join(lines)
    assert printed(monkeypatch, capsys, 80)[-1].startswith("not shown on 80 columns: context, kind")


def test_a_wide_terminal_and_a_pipe_show_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for width in (None, 160):
        lines = printed(monkeypatch, capsys, width)
        assert "not shown" not in lines[-1]
        assert "131072" in "\n".join(lines)
