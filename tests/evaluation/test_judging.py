"""Folders of sounds are judged by a protocol; what is wrong with them is told, or an error."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import soundfile

from fasttta_jax.evaluation import exhibits, sound_sets, tables
from fasttta_jax.evaluation import networks as public_networks
from fasttta_jax.evaluation.comparison import ComparisonError, compare
from fasttta_jax.evaluation.embedded import embed
from fasttta_jax.evaluation.embedders import FeatureCache
from fasttta_jax.evaluation.folders import FoldersConfig, judge_folders
from fasttta_jax.evaluation.judging import JudgingConfig, JudgingError
from fasttta_jax.evaluation.network_metrics import network_metrics
from fasttta_jax.evaluation.output import write_comparison
from fasttta_jax.evaluation.protocols import PROTOCOLS, Preparation, caption_list_sha256
from fasttta_jax.evaluation.sound_sets import open_folder
from fasttta_jax.evaluation.sound_tables import SoundsError
from tests.support.stand_in_networks import StandIn, stand_ins

RATE = 16_000
NUM = 20
CAPTIONS = [f"sound number {index}" for index in range(NUM)]
PAIRED = {
    "audioldm_eval": {"kl_softmax", "kl_sigmoid"},
    "av_benchmark": {"kl_softmax_plain"},
    "ours": {"kl_softmax", "clap_audio", "c2st"},
}


def noise(seed: int, colour: float, seconds: float = 2.0) -> np.ndarray:
    """A sound of its own spectrum."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(rng.normal(size=int(RATE * seconds)))
    shaped = spectrum * np.linspace(1, colour, len(spectrum)) * rng.uniform(0.5, 2)
    audio = np.fft.irfft(shaped, int(RATE * seconds))
    return 0.3 * audio / np.abs(audio).max()


def write_folder(
    folder: pathlib.Path, colour: float, *, offset: int = 0, captions: bool = True
) -> pathlib.Path:
    folder.mkdir()
    for index in range(NUM):
        audio = noise(index + offset, colour + 0.02 * index)
        soundfile.write(folder / f"{index:02d}.wav", audio, RATE, subtype="FLOAT")
    if captions:
        rows = (f"{index:02d}.wav,{caption}\n" for index, caption in enumerate(CAPTIONS))
        (folder / "metadata.csv").write_text("file,caption\n" + "".join(rows))
    return folder


@pytest.fixture(autouse=True)
def short_reports(monkeypatch):
    """Spectrograms take most of the time of a report."""
    monkeypatch.setattr(exhibits, "UNLABELLED_PROMPTS", 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, pathlib.Path]:
    root = tmp_path_factory.mktemp("sounds")
    return {
        "real": write_folder(root / "real", 0.2),
        "near": write_folder(root / "near", 0.2, offset=1000),
        "far": write_folder(root / "far", 3.0, offset=2000),
    }


def config(out: pathlib.Path, generated, real, **changes) -> FoldersConfig:
    networks = dict.fromkeys(stand_ins(), "unused")
    judging = JudgingConfig(networks, "audioldm_eval", reference=str(real) if real else None)
    outer_names = ("audio_data", "process_id", "num_processes")
    outer = {name: changes.pop(name) for name in outer_names if name in changes}
    return FoldersConfig(
        {name: str(folder) for name, folder in generated.items()},
        str(out),
        dataclasses.replace(judging, **changes),
        **outer,
    )


def judged(config: FoldersConfig, networks=None) -> dict:
    judge_folders(config, networks=stand_ins() if networks is None else networks)
    return json.loads((pathlib.Path(config.out) / "metrics.json").read_text())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_farther_folder_has_worse_figures_and_the_row_says_what_they_are_of(
    tmp_path, folders, protocol
):
    generated = {"near": folders["near"], "far": folders["far"]}
    found = judged(config(tmp_path, generated, folders["real"], protocol=protocol))
    near, far = found["rows"]["near"], found["rows"]["far"]
    assert near["not_measured"] == {}
    for name in ("fd_panns", "fad_vggish"):
        assert near[name] < far[name]
    if protocol == "ours":
        assert near["fd_panns_limit"] < near["fd_panns"]
        assert "fd_panns_limit_interval" not in near
    for name in set(PROTOCOLS[protocol].metrics) - {"fd_panns_limit"}:
        low, high = near[f"{name}_interval"]
        assert low <= near[name] <= high
    about = near["judged"]
    assert (about["protocol"], about["clips"], about["candidates"]) == (protocol, NUM, None)
    assert about["caption_list_sha256"] == caption_list_sha256(CAPTIONS)
    assert about["pairs"] == {"count": NUM, "by": PROTOCOLS[protocol].key}
    assert about["networks"]["panns_16k"]["sha256"] == "stand-in"
    assert about["networks"]["vggish"]["sample_rate"] == RATE
    cut = about["networks"]["vggish"]["preparation"]["longest_seconds"]
    assert cut == (10.0 if protocol == "av_benchmark" else None)
    kinds = {name: one["kind"] for name, one in found["influences"]["near"]["figures"].items()}
    assert {name for name, kind in kinds.items() if kind == "pairs"} == PAIRED[protocol]
    page = (tmp_path / "report.html").read_text()
    assert PROTOCOLS[protocol].words in page.replace("&#39;", "'")
    assert "Systems side by side" in page
    assert "Figures of the literature" not in page


def test_two_results_are_compared_clip_by_clip_or_refused(tmp_path, folders):
    files = {}
    for name in ("near", "far"):
        judged(config(tmp_path / name, {name: folders[name]}, folders["real"]))
        files[name] = tmp_path / name / "metrics.json"
    found = compare(files["near"], files["far"])
    verdicts = {one.figure: one for one in found.differences}
    assert verdicts["fd_panns"].verdict == "better"
    assert verdicts["fd_panns"].difference.value == pytest.approx(
        verdicts["fd_panns"].value - verdicts["fd_panns"].other
    )
    text = tables.as_text(found.table())
    assert text.splitlines()[0].split()[:3] == ["figure", "near", "far"]
    write_comparison(found, str(tmp_path / "page"))
    assert "better" in (tmp_path / "page" / "report.html").read_text()
    back = {one.figure: one.verdict for one in compare(files["far"], files["near"]).differences}
    assert back["fd_panns"] == "worse"
    same = compare(files["near"], f"{files['near']}:near")
    assert {one.verdict for one in same.differences} == {"cannot tell"}
    assert all(one.more_clips is None for one in same.differences), "no number would do"

    def refused(words: str, path: str, value) -> None:
        text = json.loads(files["far"].read_text())
        *parents, last = path.split("/")
        place = text["rows"]["far"]["judged"]
        for part in parents:
            place = place[part]
        place[last] = value
        other = tmp_path / "other.json"
        other.write_text(json.dumps(text))
        with pytest.raises(ComparisonError, match=words):
            compare(files["near"], other)

    refused("protocol is 'audioldm_eval' in .* and 'ours' in", "protocol", "ours")
    refused("caption_list_sha256 is '.{64}' in .* and 'ab' in", "caption_list_sha256", "ab")
    refused("networks.vggish.sha256 is 'stand-in'", "networks/vggish/sha256", "y")
    refused("networks.panns_16k.preparation is", "networks/panns_16k/preparation/channel", "mean")
    refused("reference.sha256 is", "reference/sha256", "z")
    with pytest.raises(ComparisonError, match="no judged row 'x'; its rows: near"):
        compare(f"{files['near']}:x", files["far"])
    (tmp_path / "plain.json").write_text('{"rows": {"a": {}}}')
    with pytest.raises(ComparisonError, match="written without --networks"):
        compare(files["near"], tmp_path / "plain.json")


def test_files_that_are_no_results_are_refused_by_name(tmp_path, folders):
    judged(config(tmp_path / "a", {"near": folders["near"]}, folders["real"]))
    good = tmp_path / "a" / "metrics.json"
    other = tmp_path / "other.json"

    def refused(words: str, change) -> None:
        found = json.loads(good.read_text())
        changed = change(found)
        other.write_text(json.dumps(found if changed is None else changed))
        for pair in ((good, other), (other, good)):
            with pytest.raises(ComparisonError, match=f"other.json.*{words}"):
                compare(*pair)

    found = json.loads(good.read_text())
    for part in ("rows", "influences"):
        found[part]["a:b"] = found[part].pop("near")
    other.write_text(json.dumps(found))
    assert compare(good, f"{other}:a:b").other == "a:b"
    refused("no metrics.json of eval.py", lambda found: [1])
    refused("no metrics.json of eval.py", lambda found: found | {"rows": ["near"]})
    refused("without --networks", lambda found: found | {"influences": {}})
    refused(
        "row 'near' lacks 'pairs'",
        lambda found: found["rows"]["near"]["judged"].pop("pairs") and None,
    )
    refused(
        "row 'near' lacks 'fd_panns'", lambda found: found["rows"]["near"].pop("fd_panns") and None
    )
    refused(
        r"fd_panns: influences of shape \(19,\) and 20 clips \(generated\)",
        lambda found: found["influences"]["near"]["figures"]["fd_panns"]["clips"].pop() and None,
    )
    other.write_bytes(b"\xff{")
    with pytest.raises(ComparisonError, match=r"cannot be read as metrics\.json"):
        compare(good, other)


def test_a_set_that_is_its_own_reference_and_networks_without_use_are_said(tmp_path, folders):
    settings = config(tmp_path, {"a": folders["near"]}, folders["near"], metrics=("fd_panns",))
    warnings = "\n".join(judge_folders(settings, networks=stand_ins()).warnings)
    assert "a and the reference hold the same sounds" in warnings
    assert "the networks vggish, clap are given, and no figure that is asked for" in warnings


def test_written_reference_statistics_stand_for_the_sounds(tmp_path, folders):
    file = tmp_path / "real.npz"
    first = judged(
        config(
            tmp_path / "a",
            {"near": folders["near"]},
            folders["real"],
            write_reference_statistics=str(file),
        )
    )
    networks = stand_ins()
    settings = config(
        tmp_path / "b",
        {"near": folders["near"]},
        None,
        reference_statistics=str(file),
    )
    second = judged(settings, networks)
    assert networks["panns_16k"].clips == NUM, "only the generated ones"
    for name in PROTOCOLS["audioldm_eval"].metrics:
        assert second["rows"]["near"][name] == first["rows"]["near"][name]
    assert compare(tmp_path / "a/metrics.json", tmp_path / "b/metrics.json").differences
    other = {**stand_ins(), "vggish": StandIn("vggish", hash="other")}
    with pytest.raises(SoundsError, match=r"is of another hash of vggish .*stand-in.* has other"):
        judged(settings, other)
    with pytest.raises(SoundsError, match=r"another preparation of panns_16k .*audioldm_eval"):
        judged(
            dataclasses.replace(
                settings, judging=dataclasses.replace(settings.judging, protocol="ours")
            )
        )
    whole = file.read_bytes()
    about = np.asarray("{}")
    for damaged in (b"nonsense", b"", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(SoundsError, match="cannot be read as reference statistics"):
            judged(settings)
    np.savez(file, about=about, names=np.asarray(["a"]), captions=np.asarray(["a"]))
    with pytest.raises(SoundsError, match=r"cannot be read as reference statistics.*'where'"):
        judged(settings)
    with file.open("wb") as opened:
        np.save(opened, about)
    with pytest.raises(SoundsError, match=r"a single array, no \.npz"):
        judged(settings)


def test_what_was_embedded_before_a_kill_is_not_embedded_again(tmp_path, folders):
    @dataclasses.dataclass
    class Failing(StandIn):
        def embed(self, audio):
            if len(audio) and self.clips >= NUM:
                raise KeyboardInterrupt
            return super().embed(audio)

    settings = config(tmp_path, {"near": folders["near"]}, folders["real"])
    with pytest.raises(KeyboardInterrupt):
        judged(settings, {**stand_ins(), "panns_16k": Failing()})
    networks = stand_ins()
    judged(settings, networks)
    assert networks["panns_16k"].clips == NUM, "the other half was there"


def test_a_file_is_decoded_once_for_all_networks(tmp_path, folders, monkeypatch):
    """And prepared once for those that hear it alike, as PANNs and VGGish do."""
    decoded, prepared = [], []
    opened, prepare = sound_sets.read_channels, Preparation.__call__
    monkeypatch.setattr(
        sound_sets, "read_channels", lambda path: decoded.append(path) or opened(path)
    )
    monkeypatch.setattr(
        Preparation, "__call__", lambda *given: prepared.append(given) or prepare(*given)
    )
    sets = {name: open_folder(folders[name]) for name in ("near", "real")}
    for name, sounds in sets.items():
        networks = stand_ins()
        found = embed(sounds, networks, PROTOCOLS["ours"], FeatureCache(tmp_path), name=name)
        assert set(found.features) == {"panns_16k", "vggish", "clap"}
    assert sorted(decoded) == sorted(
        folders[name] / f"{index:02d}.wav" for name in sets for index in range(NUM)
    )
    assert len(prepared) == 2 * len(decoded)


def test_processes_share_the_features_and_one_judges(tmp_path, folders):
    sets = ({"near": folders["near"]}, folders["real"])
    alone = judged(config(tmp_path / "alone", *sets))
    computed = []
    for index in range(3):
        networks = stand_ins()
        shared = config(tmp_path / "shared", *sets, process_id=index, num_processes=3)
        assert judge_folders(shared, networks=networks) is None
        computed += [one.clips for one in networks.values()]
    assert not (tmp_path / "shared" / "metrics.json").exists()
    assert sum(computed) == 2 * NUM * len(("panns_16k", "vggish"))
    last = stand_ins()
    together = judged(config(tmp_path / "shared", *sets), last)
    assert sum(one.clips for one in last.values()) == 0
    assert together["rows"] == alone["rows"]


def test_bad_files_are_left_out_by_reason_and_odd_ones_named(tmp_path, folders):
    folder = tmp_path / "bad"
    write_folder(folder, 0.3, offset=50)
    (folder / "00.wav").write_bytes(b"RIFF")
    (folder / "01.wav").write_bytes(b"")
    soundfile.write(folder / "02.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    soundfile.write(folder / "03.wav", np.zeros(2 * RATE), RATE)
    soundfile.write(folder / "04.wav", noise(4, 0.2, seconds=0.5), RATE)
    (folder / "05.wav").unlink()
    soundfile.write(folder / "06.wav", noise(6, 0.2), 2 * RATE)
    settings = config(tmp_path / "out", {"bad": folder}, folders["real"])
    with pytest.raises(JudgingError) as raised:
        judged(settings)
    message = str(raised.value)
    assert "bad: kl_softmax, kl_sigmoid compare pairs, and more than 1 %" in message
    assert "16 pairs by name; 4 have no sound, such as '00.wav'" in message
    assert "--metrics=fd_panns,fad_vggish,inception_score leaves out" in message
    unpaired = dataclasses.replace(settings.judging, metrics=("fd_panns", "fad_vggish"))
    found = judged(dataclasses.replace(settings, judging=unpaired))
    row = found["rows"]["bad"]
    assert set(row["judged"]["generated"]["left_out"]) == {"00.wav", "01.wav", "02.wav", "05.wav"}
    assert row["judged"]["generated"]["left_out_by_reason"] == {
        "unreadable": 1,
        "empty": 1,
        "not finite": 1,
        "missing": 1,
    }
    assert row["judged"]["generated"]["silent"] == ["03.wav"]
    assert row["judged"]["generated"]["short"] == ["04.wav"]
    assert row["judged"]["missing"] == ["00.wav", "01.wav", "02.wav", "05.wav"]
    page = (tmp_path / "out" / "report.html").read_text()
    for words in (
        "bad: 1 files are left out (not finite): 02.wav.",
        "bad: 1 files are silent: 03.wav.",
        "have different sample rates",
    ):
        assert words in page


def test_a_list_without_counterparts_is_refused_before_anything_is_embedded(tmp_path, folders):
    few = tmp_path / "few"
    few.mkdir()
    for index in range(3):
        soundfile.write(few / f"x{index}.wav", noise(index, 0.2), RATE)
    networks = stand_ins()
    with pytest.raises(JudgingError, match=r"0 pairs by name; 20 have no sound, such as '00.wav'"):
        judged(config(tmp_path / "out", {"few": few}, folders["real"]), networks)
    assert networks["panns_16k"].clips == 0


def test_swapped_folders_are_said(tmp_path, folders):
    generation = write_folder(tmp_path / "generation", 0.2, offset=7, captions=False)
    rows = (
        {"file": f"{index:02d}.wav", "prompt": caption, "checkpoint": {}}
        for index, caption in enumerate(CAPTIONS)
    )
    (generation / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bare = write_folder(tmp_path / "bare", 0.2, captions=False)

    def warnings(out: str, **folders) -> str:
        found = judge_folders(
            config(tmp_path / out, {"a": folders["generated"]}, folders["reference"]),
            networks=stand_ins(),
        )
        return "\n".join(found.warnings)

    swapped = warnings("a", generated=folders["real"], reference=generation)
    assert "was written by generate.py: are the folders of --generated and --reference" in swapped
    without = warnings("b", generated=generation, reference=bare)
    assert "has no captions and a has: are the folders" in without
    assert "swapped" not in warnings("c", generated=generation, reference=folders["real"])


def test_too_few_clips_and_missing_networks_are_not_measured_or_an_error(tmp_path, folders):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("00.wav", "01.wav"):
        (few / name).write_bytes((folders["near"] / name).read_bytes())
    settings = config(
        tmp_path / "out", {"few": few}, folders["real"], metrics=("fd_panns", "inception_score")
    )
    row = judged(settings)["rows"]["few"]
    assert row["fd_panns"] > 0
    assert "10 clips are needed" in row["not_measured"]["inception_score"]
    only = {name: one for name, one in stand_ins().items() if name == "vggish"}
    with pytest.raises(JudgingError, match="the networks are vggish; the figures fd_panns"):
        judged(settings, only)
    (few / "01.wav").unlink()
    with pytest.raises(SoundsError, match=r"1 of 1 sounds can be read; .* at least two"):
        judged(settings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"networks": {}}, "give --networks=NAME=FOLDER"),
        (
            {"protocol": "theirs"},
            "protocol is 'theirs'; allowed: audioldm_eval, av_benchmark, ours",
        ),
        ({"reference_statistics": "x"}, "both reference and reference_statistics"),
        ({"process_id": 2, "num_processes": 2}, "process_id is 2; allowed: 0 to 1"),
        ({"reference": None}, "nothing to compare with: give --reference=FOLDER"),
        (
            {"reference": None, "reference_statistics": "x", "write_reference_statistics": "y"},
            "write_reference_statistics needs the real sounds",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, changes, words):
    with pytest.raises(JudgingError, match=words):
        config(tmp_path, {"a": "x"}, "y", **changes)


def test_names_of_metrics_and_networks_are_checked(tmp_path, folders):
    with pytest.raises(JudgingError, match="metrics names fid; allowed in the protocol audioldm"):
        judged(config(tmp_path, {"a": folders["near"]}, folders["real"], metrics=("fid",)))
    needed = {
        metric.needs.embedder
        for metric in network_metrics().values()
        if metric.quantity.name in PROTOCOLS["ours"].metrics
    }
    assert needed <= set(public_networks.LOADERS)


def test_literature_is_shown_with_its_protocols_where_it_is_asked_for(tmp_path, folders):
    judged(config(tmp_path, {"a": folders["near"]}, folders["real"], literature=True))
    page = (tmp_path / "report.html").read_text()
    assert "Figures of the literature" in page
    assert "cannot be subtracted" in page
    assert "886 captions" in page
