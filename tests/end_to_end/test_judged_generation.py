"""Real captions go through generate.py, and its sounds through eval.py with public networks."""

from __future__ import annotations

import csv
import json

import pytest
import soundfile

from fasttta_jax.evaluation.protocols import caption_list_sha256
from fasttta_jax.pretrained.panns import CNN14_16K
from tests.support import commands, conversions

NUM = 10


@pytest.mark.slow
def test_a_student_is_judged_on_captions_of_audiocaps(runs, datasets, tmp_path):
    """Against real recordings under these captions, which stand for the real clips."""
    with open(datasets / "audiocaps_captions" / "val.csv", encoding="utf-8", newline="") as file:
        rows = [row for _, row in zip(range(NUM), csv.DictReader(file), strict=False)]
    captions = [row["caption"] for row in rows]
    prompts, real, out = tmp_path / "prompts.csv", tmp_path / "real", tmp_path / "out"
    with open(prompts, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    real.mkdir()
    with open(real / "captions.tsv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["name", "caption"])
        recordings = sorted((datasets / "esc10" / "audio").iterdir())[::32]
        for row, recording in zip(rows, recordings, strict=True):
            samples, rate = soundfile.read(recording)
            soundfile.write(real / f"{row['youtube_id']}.wav", samples[: 2 * rate], rate)
            writer.writerow([row["youtube_id"], row["caption"]])
    weights = {
        "panns_16k": conversions.random_panns(tmp_path / "panns_16k", CNN14_16K),
        "vggish": conversions.random_vggish(tmp_path / "vggish"),
        "clap": conversions.random_clap_towers(tmp_path / "clap"),
    }
    for seed in (0, 100):
        done = commands.run(
            *("generate.py", f"--workdir={runs['student']}", f"--prompts={prompts}"),
            *(f"--out={tmp_path / f'sounds{seed}'}", "--num_iterations=1", f"--seed={seed}"),
        )
        assert done.returncode == 0, done.stderr
    done = commands.run(
        *("eval.py", f"--reference={real}", f"--out={out}", "--protocol=ours"),
        *(f"--generated=seed{seed}={tmp_path / f'sounds{seed}'}" for seed in (0, 100)),
        *(f"--networks={name}={folder}" for name, folder in weights.items()),
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert f"seed0: {NUM} clips: none of the published lists has as many." in done.stdout
    found = json.loads((out / "metrics.json").read_text())["rows"]
    for row in found.values():
        assert list(row["not_measured"]) == ["fd_panns_limit"], "which needs 20 clips"
        about = row["judged"]
        assert about["pairs"] == {"count": NUM, "by": "caption"}
        assert about["caption_list_sha256"] == caption_list_sha256(captions)
        assert about["generated"]["left_out"] == {}
        assert row["fd_panns"] > 0
    file = out / "metrics.json"
    done = commands.run("eval.py", f"--compare={file}:seed0,{file}:seed100")
    assert done.returncode == 0, done.stderr
    heading, *lines = done.stdout.splitlines()
    assert heading.split()[1:4] == ["seed0", "seed100", "difference"]
    assert any(line.startswith("fad_vggish") for line in lines)
    done = commands.run("eval.py", f"--compare={file},{file}:seed100")
    assert done.returncode == 1
    assert "must have one judged row, or be given as" in done.stderr
    pair, page = f"--compare={file}:seed0,{file}:seed100", tmp_path / "compared"
    done = commands.run("eval.py", pair, f"--out={page}")
    assert done.returncode == 0, done.stderr
    assert "fad_vggish" in (page / "report.html").read_text(encoding="utf-8")
    done = commands.run("eval.py", pair, f"--out={out}")
    assert done.returncode == 1
    assert "which holds the report of an evaluation" in done.stderr
    done = commands.run("eval.py", pair, "--protocol=ours")
    assert done.returncode == 1
    assert "judges nothing; found beside it: --protocol" in done.stderr
