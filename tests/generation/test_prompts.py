"""Prompts of command lines and tables: each row is a clip of its own, whatever the others are."""

from __future__ import annotations

import json
import pathlib
import tracemalloc

import pytest

from fasttta_jax.generation import names
from fasttta_jax.generation.names import NameTemplate, TemplateError
from fasttta_jax.generation.prompts import BadRow, PromptError, Prompts, Wanted

EXPECTED = ["a dog, barking", 'it says "wow"', "rain"]
TABLES = {
    "a.txt": 'a dog, barking\n\n  it says "wow" \nrain',
    "b.csv": 'id,caption\n1,"a dog, barking"\n2,"it says ""wow"""\n3,rain\n',
    "bom.csv": '\ufeffid,caption\r\n1,"a dog, barking"\r\n2,"it says ""wow"""\r\n3,rain\r\n',
    "c.tsv": 'id\tcaption\n1\ta dog, barking\n2\t"it says ""wow"""\n3\train\n',
    "d.jsonl": "".join(json.dumps({"prompt": text}) + "\n" for text in EXPECTED),
    "e.json": json.dumps([{"caption": text, "split": "test"} for text in EXPECTED]),
}


def rows(table: pathlib.Path, **options) -> list[Wanted | BadRow]:
    return list(Prompts(table=str(table), **options))


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_all_formats_say_the_same(tmp_path, name):
    table = tmp_path / name
    table.write_bytes(TABLES[name].encode())
    found = rows(table)
    assert [one.prompt for one in found] == EXPECTED
    assert [one.seed for one in found] == [0, 1, 2]


def test_a_row_that_cannot_be_used_keeps_its_place(tmp_path):
    """The others are what they would be without it."""
    lines = [
        "id,prompt,seed",
        "a,rain,",
        "b,wind,7",
        "a,again,",
        "c,,",
        'd,"x""y"z,',
        "e,short",
        f"f,{'x' * 10_000},",
        "g,thunder,-1",
        "h,thunder,4294967296",
        "i,\udce9t\udce9,",
        "j,bell,",
    ]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(lines), errors="surrogateescape")
    found = rows(table, clips_per_prompt=2, candidates=3, seed=100)
    assert [one.index for one in found] == list(range(22))
    good = {one.index: one for one in found if isinstance(one, Wanted)}
    assert {index: (one.id, one.prompt, one.seed) for index, one in good.items()} == {
        0: ("a", "rain", 100),
        1: ("a", "rain", 103),
        2: ("b", "wind", 7),
        3: ("b", "wind", 10),
        20: ("j", "bell", 160),
        21: ("j", "bell", 163),
    }
    reasons = {one.place: one.reason for one in found if isinstance(one, BadRow)}
    expected = {
        4: f"id 'a' is that of {table}:2, too; allowed: each id once",
        5: "the prompt is empty",
        6: "malformed CSV: ',' expected after '\"'",
        7: "has 2 fields, but the header has 3",
        8: "the prompt has 10,000 characters; allowed: 2,000",
        9: "seed is '-1'; allowed: a whole number",
        10: "seed is 4294967296; allowed: 0 to 4294967295",
        11: "is not UTF-8 text",
    }
    assert reasons.keys() == {f"{table}:{line}" for line in expected}
    for line, reason in expected.items():
        assert reason in reasons[f"{table}:{line}"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "id,text\n1,x\n", r"columns are \['id', 'text'\]; one must be prompt or caption"),
        ("a.csv", "", r"columns are \[\]; one must be prompt"),
        ("a.csv", "prompt\n", "holds no prompts"),
        ("a.csv", "prompt,temperature\nx,1\n", "temperature cannot be a column"),
        ("b.jsonl", '{"text": "x"}\n', "none of the 1 rows can be used; the first: .*:1: a text"),
        ("b.jsonl", "nonsense\n", "none of the 1 rows .*malformed JSON"),
        ("b.json", "nonsense", "malformed JSON"),
        ("b.json", f'[{{"prompt": {"9" * 5000}}}]', r"b\.json: malformed JSON: Exceeds the limit"),
        ("c.jsonl", '{"prompt": "x", "iterations": 3}', "iterations cannot be a column"),
        ("d.txt", "\n \n", "holds no prompts"),
        ("e.pdf", "x", r"ends in '.pdf'; allowed: .txt, .csv"),
    ],
)
def test_a_table_without_prompts_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Prompts(table=str(tmp_path / name))


def test_rows_have_settings_of_their_own(tmp_path):
    table = tmp_path / "t.jsonl"
    given = [
        {"prompt": "rain", "seconds": 2.5, "guidance": "3", "negative": " wind "},
        {"prompt": "rain", "seconds": "", "guidance_scale": None, "negative": ""},
        {"prompt": "rain", "seconds": 0},
        {"prompt": "rain", "seconds": "a day"},
        {"prompt": "rain", "guidance": True},
        {"prompt": "rain", "guidance": -1},
        {"prompt": "rain", "negative": 3},
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in given))
    first, second, *bad = rows(table)
    assert Prompts(table=str(table)).columns == {"negative", "guidance_scale", "seconds"}
    assert (first.negative, first.guidance_scale, first.seconds) == ("wind", 3.0, 2.5)
    assert (second.negative, second.guidance_scale, second.seconds) == (None, None, None)
    assert [one.reason for one in bad] == [
        "seconds is 0.0; allowed: above 0, up to 86400, a day",
        "seconds is 'a day'; allowed: a number, 0 or more",
        "guidance is True; allowed: a number, 0 or more",
        "guidance is -1; allowed: a number, 0 or more",
        "negative is 3; allowed: a text",
    ]
    table.write_text('{"prompt": "rain"}')
    assert Prompts(table=str(table)).columns == set()


def test_a_prompt_in_an_old_encoding_is_refused():
    with pytest.raises(PromptError, match=r"the prompt is 'un caf\\\\udce9', which is not UTF-8"):
        Prompts(("un caf\udce9",))


def test_without_any_prompt_it_says_what_to_give():
    with pytest.raises(PromptError, match="give --prompt or --prompts"):
        Prompts()
    assert [one.prompt for one in Prompts(("", "x"))] == ["", "x"]  # which somebody wrote there


@pytest.mark.usefixtures("unchecked")
def test_memory_does_not_grow_with_the_table(tmp_path):
    """But for a hash of 8 bytes a row, of which sorting takes a few copies."""
    table = tmp_path / "long.csv"
    number = 2000
    with open(table, "w") as file:
        file.write("id,prompt\n")
        file.writelines(f"row{index},{'x' * 1000} {index}\n" for index in range(number))
    tracemalloc.start()
    count = sum(isinstance(one, Wanted) for one in Prompts(table=str(table)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == number
    assert peak < 8 * 8 * number + 2**19 < table.stat().st_size


def test_real_captions_are_prompts(datasets: pathlib.Path) -> None:
    found = rows(datasets / "audiocaps_captions" / "val.csv")
    assert len(found) == 2475
    assert all(0 < len(names.slug(one.prompt)) <= 40 for one in found)


WANTED = Wanted(7, "../a.wav", "A dog: barks / 犬", 11)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{index:05d}_{slug}", "00007_a_dog_barks"),
        ("{id}", "a_wav"),
        ("x-{prompt}-{seed}", "x-A_dog_barks_犬-11"),
        ("{index:d}", "7"),
    ],
)
def test_names_stay_in_their_folder(template, name):
    assert NameTemplate(template).of(WANTED) == name


def test_two_clips_of_one_name_are_found_before_anything_is_made():
    wanted = [Wanted(0, "a", "rain", 0), Wanted(1, "b", "wind", 1), Wanted(2, "c", "Rain", 2)]
    for template in ("{index}_{slug}", "{id}", "{slug}_{seed}"):
        NameTemplate(template).check_unique(wanted)
    with pytest.raises(TemplateError, match=r"the clips 0 \('rain'\) and 2 \('Rain'\) the name"):
        NameTemplate("{slug}").check_unique(wanted)
    ambiguous = [Wanted(1, "a", "x", 12), Wanted(11, "b", "x", 2)]
    with pytest.raises(TemplateError, match="the name '112'"):
        NameTemplate("{index}{seed}").check_unique(ambiguous)
    with pytest.raises(TemplateError, match="a field of the width 0999999999d; allowed: below"):
        NameTemplate("{index:0999999999d}")
    long = Wanted(0, "x" * 80, "犬" * 80, 0)
    with pytest.raises(TemplateError, match="bytes; allowed: 1 to 200"):
        NameTemplate("{id}{prompt}").of(long)
