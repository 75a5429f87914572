"""The command line: what each command prints, and how each kind of bad input is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cli
import pytest

from pronghorn import compose
from pronghorn.cli import methods, paint
from pronghorn.errors import RequestError
from pronghorn.llm import DEFAULT_USE, LLM, Piece
from pronghorn.text import TextStream
from pronghorn.types import Origin

RUN = ("run", "--backend", "ref")
GATE = "The code of the river gate is 52817. What is the code of the river gate?"
PATTERN = r" three four\. one two three[a-z. ]+"  # its beginning is forced
LOOP = "one two three four. one two three four. one two three four. one two"
COMMANDS = ("run", "chat", "info", "methods", "explain", "verify", "convert")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> cli.Caller:
    return cli.Caller(capsys, monkeypatch)


# ---------------------------------------------------------------------------------- help


def test_version(call):
    from pronghorn import __version__

    assert call("--version").out == f"pronghorn {__version__}\n"


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)])
def test_help_shows_examples(call, command):
    result = call(*command, "--help")
    assert result.status == 0
    assert "Examples" in result.out
    assert "pronghorn " + " ".join(command) in result.out


def test_no_command_is_help(call):
    result = call()
    assert result.status == 0
    assert all(c in result.out for c in COMMANDS)


def test_unknown_command_names_the_nearest(call):
    assert "did you mean 'run'" in call.refused("rnu")
    assert "known: " in call.refused("xyzzy")


def test_unknown_option_names_the_nearest(call):
    assert "--backend" in call.refused("run", "--bakend", "ref", "hi")


def test_malformed_number(call):
    assert "--max-tokens" in call.refused("run", "--max-tokens", "many", "hi")


# ---------------------------------------------------------------------------------- run


def test_run_streams_what_generate_returns(call):
    llm = LLM(backend="ref")
    want = llm.chat([{"role": "user", "content": GATE}], max_tokens=12).text
    result = call(*RUN, "-n", "12", GATE)
    assert result.status == 0
    assert result.out == want + "\n"
    assert "first token" in result.err
    assert "exact" in result.err
    assert len(result.err.splitlines()) == 1


def test_run_json(call):
    result = call(*RUN, "-n", "20", "--raw", "--json", "--draft", "prompt-lookup", LOOP)
    data = result.data
    assert result.err == ""
    assert data["finish"] in ("stop", "length")
    assert len(data["tokens"]) == data["stats"]["new_tokens"] == 20
    assert data["stats"]["accepted"] > 0
    assert data["stats"]["guarantee"] == "exact"
    assert sorted(m.partition(":")[0] for m in data["stats"]["methods"]) == sorted(
        {*DEFAULT_USE, "prompt-lookup"} - {"auto"}
    )


def test_run_tells_who_drafted(call):
    given = (*RUN, "-n", "30", "--raw", "--draft", "prompt-lookup", "--regex", PATTERN, LOOP)
    stats = call(*given, "--json").data["stats"]
    by = stats["drafters"]
    assert set(by) == {"forced", "prompt-lookup"}
    assert {k: sum(n[k] for n in by.values()) for k in ("drafted", "accepted")} == {
        "drafted": stats["drafted"], "accepted": stats["accepted"],
    }  # fmt: skip
    line = call(*given).err
    assert f"drafted {stats['drafted']}, accepted {stats['accepted']} (" in line
    for who, n in by.items():
        assert f"{who} {n['accepted']}/{n['drafted']}" in line


@pytest.mark.parametrize("without", [("--draft", "none"), ("--plain",)])
def test_without_a_drafter_forced_tokens_are_drafted(call, without):
    stats = call(*RUN, "-n", "30", "--raw", "--json", *without, "--regex", PATTERN, LOOP).data["stats"]
    assert set(stats["drafters"]) == {"forced"}
    assert stats["drafters"]["forced"]["accepted"] > 3


def test_drafts_of_several_answers():
    def stats(**by: tuple[int, int]):
        sums = {k: sum(n[i] for n in by.values()) for i, k in enumerate(("drafted", "accepted"))}
        return replace(done.stats, drafters=by, **sums)

    done = LLM(backend="ref", defaults=("match", "fcfs")).generate("Hi", max_tokens=1)
    assert paint.drafts([]) == "drafted 0, accepted 0"
    assert paint.drafts([stats(suffix=(9, 4))]) == "drafted 9, accepted 4 (suffix)"
    both = [stats(suffix=(9, 4), rest=(2, 2)), stats(rest=(10, 5))]
    assert paint.drafts(both) == "drafted 21, accepted 11 (rest 7/12, suffix 4/9)"


def test_plain_has_no_drafter_and_the_same_tokens(call):
    fast = call(*RUN, "-n", "30", "--raw", "--json", "--draft", "prompt-lookup", LOOP).data
    plain = call(*RUN, "-n", "30", "--raw", "--json", "--plain", LOOP).data
    assert plain["stats"]["drafted"] == 0 < fast["stats"]["drafted"]
    assert not {"prompt-lookup", "auto"} & set(plain["stats"]["methods"])
    assert plain["tokens"] == fast["tokens"]


def test_piped_prompt_equals_argument(call):
    want = call(*RUN, "-n", "5", "--json", GATE).data["tokens"]
    assert call(*RUN, "-n", "5", "--json", stdin=GATE + "\n").data["tokens"] == want
    assert call(*RUN, "-n", "5", "--json", "-", stdin=GATE + "\n").data["tokens"] == want


def test_chat_template_is_the_default_where_there_is_one(call):
    asked = call(*RUN, "-n", "1", "--json", GATE).data["stats"]["prompt_tokens"]
    assert call(*RUN, "-n", "1", "--json", "--chat", GATE).data["stats"]["prompt_tokens"] == asked
    assert call(*RUN, "-n", "1", "--json", "--raw", GATE).data["stats"]["prompt_tokens"] < asked
    longer = call(*RUN, "-n", "1", "--json", "--system", "Be brief.", GATE).data["stats"]["prompt_tokens"]
    assert longer > asked


def test_same_seed_same_text(call):
    args = (*RUN, "-n", "20", "--temperature", "1", "--json", "--raw", "Once upon a time")
    one, two, other = (call(*args, "--seed", s).data["tokens"] for s in ("1", "1", "2"))
    assert one == two != other


def test_stop(call):
    whole = call(*RUN, "-n", "20", "--raw", "--json", LOOP).data["text"]
    word = whole.split()[3]
    cut = call(*RUN, "-n", "20", "--raw", "--json", "--stop", word, LOOP).data
    assert cut["finish"] == "stop"
    assert cut["text"] == whole[: whole.index(word)]


def test_regex(call):
    text = call(*RUN, "--regex", "[0-9]{5}", GATE).out.strip()
    assert len(text) == 5
    assert text.isdigit()


def test_json_schema_as_text_and_as_file(call, tmp_path):
    schema = '{"enum": ["yes", "it\'s"]}'
    file = tmp_path / "schema.json"
    file.write_text(schema)
    for given in (schema, str(file)):
        assert json.loads(call(*RUN, "--json-schema", given, GATE).out) in ("yes", "it's")


def test_truncate(call):
    data = call(*RUN, "--raw", "--truncate", "-n", "2", "--json", stdin="word " * 3000).data
    assert data["stats"]["prompt_tokens"] == 1022
    assert data["stats"]["new_tokens"] <= 2


def test_an_error_in_mid_answer_stands_on_its_own_line(call, monkeypatch):
    def broken(self, prompt, **options):
        yield Piece("half", (5,), (False,))
        raise RequestError("it broke")

    monkeypatch.setattr(LLM, "stream", broken)
    monkeypatch.setattr(LLM, "chat_stream", broken)
    for args, stdin in ((("run", "hi"), ""), (("chat",), "hi\n")):
        result = call(args[0], "--backend", "ref", *args[1:], stdin=stdin)
        assert (result.status, result.out, result.err) == (2, "half\n", "pronghorn: it broke\n")


# ---------------------------------------------------------------------------------- refusals of run


@pytest.mark.parametrize("prompt", [("",), ("-",), (), ("--raw", "")])
def test_empty_prompt(call, prompt):
    assert "prompt is empty" in call.refused(*RUN, *prompt)


def test_prompt_past_the_context(call):
    assert "context is 1024" in call.refused(*RUN, "--raw", stdin="word " * 3000)


def test_prompt_that_is_not_text(call):
    assert "UTF-8" in call.refused(*RUN, stdin=b"\xff\xfe\x00")
    assert "surrogate" in call.refused(*RUN, "\udcff")


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (["prompt-lokup"], "did you mean 'prompt-lookup'"),
        (["snapkv:bugdet=9"], "did you mean 'budget'"),
        (["snapkv:budget=lots"], "whole number"),
        (["snapkv:budget"], "needs a value"),
        (["snapkv", "streaming-llm"], "choose one"),
        (["snapkv", "snapkv"], "choose one"),
        (["skip-layers:layers=99"], "99"),
        (["draft.snapkv"], "no method in slot 'draft'"),
    ],
)
def test_methods_that_cannot_work(call, use, says):
    args = [x for u in use for x in ("--use", u)]
    assert says in call.refused(*RUN, *args, "hi")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-n", "0"], "at least one token"),
        (["-t", "-1"], "temperature"),
        (["-t", "nan"], "temperature"),
        (["--backend", "natvie"], "known: native"),
        (["--raw", "--system", "x"], "--raw"),
        (["--regex", "["], "pattern"),
        (["--json-schema", "{"], "not JSON"),
        (["--json-schema", "/nonexistent/schema"], "cannot read"),
        (["--json-schema", "{}", "--regex", "a"], "choose one"),
        (["--regex", "a", "--use", "json"], "choose one"),
        (["--model", "/nonexistent/model"], "does not exist"),
        (["--model", ""], "config.json is missing"),
        (["--threads", "-1"], "--threads"),
    ],
)
def test_bad_options(call, args, says):
    assert says in call.refused("run", *(() if "--backend" in args else ("--backend", "ref")), *args, "hi")


# ---------------------------------------------------------------------------------- damaged checkpoints


def _truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])


def _missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _unknown(folder: Path) -> None:
    cli.change_json(folder / "config.json", model_type="llamma", architectures=["LlammaForCausalLM"])


def _disagrees(folder: Path) -> None:
    cli.change_json(folder / "config.json", intermediate_size=529)


def _nan(folder: Path) -> None:
    cli.fill_tensor(folder / "model.safetensors", "model.layers.3.mlp.up_proj.weight", b"\xc0\x7f")


def _hostile(folder: Path) -> None:
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    cli.change_json(folder / "tokenizer_config.json", chat_template=template)


def _not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


DAMAGE = {
    _truncated: "model.safetensors",
    _missing: "safetensors",
    _no_tokenizer: "tokenizer.json",
    _unknown: "llamma",
    _disagrees: "intermediate_size 529",
    _nan: "model.layers.3.mlp.up_proj.weight",
    _hostile: "template",
    _not_json: "config.json",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__.strip("_"))
def test_damaged_checkpoint(call, tmp_path, damage):
    folder = cli.copy_tiny(tmp_path)
    damage(folder)
    assert DAMAGE[damage] in call.refused(*RUN, "--model", str(folder), "hi")


@pytest.mark.parametrize("damage", [_truncated, _missing, _unknown, _not_json])
def test_info_of_a_checkpoint_that_cannot_be_read(call, tmp_path, damage):
    folder = cli.copy_tiny(tmp_path)
    damage(folder)
    assert DAMAGE[damage] in call.refused("info", str(folder))


def test_info_says_why_a_readable_checkpoint_cannot_run(call, tmp_path):
    folder = cli.copy_tiny(tmp_path)
    _disagrees(folder)
    result = call("info", str(folder), "--json")
    assert result.status == 2
    assert result.data["supported"] is False
    assert "intermediate_size 529" in result.data["reasons"][0]
    assert result.data["parameters"] == 4009152


def test_damaged_gguf(call, tmp_path):
    assert call("convert", "pronghorn-tiny", str(tmp_path / "a.gguf")).status == 0
    whole = (tmp_path / "a.gguf").read_bytes()
    for name, data in (("cut", whole[:200_000]), ("empty", b""), ("lies", whole[:8] + b"\xff" * 16)):
        file = tmp_path / f"{name}.gguf"
        file.write_bytes(data)
        assert name in call.refused(*RUN, "--model", str(file), "hi")
        assert name in call.refused("info", str(file))


# ---------------------------------------------------------------------------------- info


def test_info(call):
    data = call("info", "--json").data
    assert data["supported"] is True
    assert data["architecture"] == "llama"
    assert data["parameters"] == 4009152
    assert data["stored"] == [{"dtype": "BF16", "tensors": 74, "parameters": 4009152, "nbytes": 8018304}]
    config = data["config"]
    assert (config["layers"], config["kv_heads"], config["context"]) == (8, 2, 1024)
    assert data["chat_template"] is True
    # 1,008 rows (whole pages) x 8 layers x 2 heads x (K and V of 32) x 4 bytes
    assert data["kv_bytes"]["fp32"] == 1008 * 8 * 2 * 64 * 4 == 2 * data["kv_bytes"]["bf16"]
    assert data["kv_bytes"]["int8"] < data["kv_bytes"]["bf16"]
    text = call("info").out
    assert "Pronghorn runs this checkpoint." in text


def test_a_dot_is_this_folder_and_not_the_bundled_ones(call, monkeypatch, tmp_path):
    monkeypatch.chdir(cli.copy_tiny(tmp_path))
    assert call("info", ".", "--json").data["path"] == "."
    assert "copy" not in call.refused("info", "..")


def test_info_weight_bytes_are_those_that_are_held(call):
    llm = LLM(backend="ref")
    assert call("info", "--json").data["weight_bytes"] == llm.engine.bound.weight_bytes


# ---------------------------------------------------------------------------------- methods, explain


def test_methods_lists_every_file(call):
    listed = {(m["slot"], m["name"]) for m in call("methods", "--json").data}
    assert listed == {(slot, name) for slot, group in compose.names().items() for name in group}
    text = call("methods").out
    assert all(name in text for _, name in listed)


def test_methods_one(call):
    (found,) = call("methods", "snapkv", "--json").data
    assert found["guarantee"] == "approximate"
    assert found["text"].startswith(found["about"].split()[0])
    assert {o["name"] for o in found["options"]} >= {"budget", "window"}
    text = call("methods", "snapkv").out
    assert "budget" in text
    assert "did you mean 'snapkv'" in call.refused("methods", "snapvk")


def test_stated_defaults_are_what_an_empty_spec_gives(call):
    for m in call("methods", "--json").data:
        if any(o["required"] for o in m["options"]):
            continue
        marks = ["'" if o["kind"] == "str" else "" for o in m["options"]]
        given = zip(m["options"], marks, strict=True)
        spec = ",".join(f"{o['name']}={q}{o['default']}{q}" for o, q in given)
        name = f"{m['slot']}.{m['name']}"
        assert compose.parse(f"{name}:{spec}")[1] == compose.parse(name)[1]


def test_markdown_page_names_every_method(call):
    page = call("methods", "--markdown").out
    assert page.startswith("# Methods\n")
    for group in compose.names().values():
        assert all(f"### `{name}`" in page for name in group)


def test_guarantee_of_each_method_is_readable():
    for slot, group in compose.names().items():
        for name in group:
            found = methods.describe(slot, name)
            assert found.guarantee in ("exact", "distribution", "approximate")
            assert found.about


def test_explain(call):
    data = call("explain", "--use", "snapkv:budget=64", "--json").data
    assert data["guarantee"] == "approximate"
    assert data["runs"] is True
    by = {m["slot"]: m for m in data["methods"]}
    assert by["kv"]["default"] is False
    assert by["kv"]["method"] == "snapkv:budget=64"
    assert by["draft"]["default"] is True
    text = call("explain").out
    assert "guarantee: exact" in text
    assert all(u in text for u in DEFAULT_USE)


def test_explain_refuses_with_reasons(call):
    result = call("explain", "--use", "skip-layers:layers=99")
    assert result.status == 2
    assert "cannot run: " in result.out
    data = call("explain", "--use", "skip-layers:layers=99", "--json")
    assert data.status == 2
    assert data.data["runs"] is False
    assert data.data["reasons"]


# ---------------------------------------------------------------------------------- convert


def test_convert_and_run(call, tmp_path):
    want = call(*RUN, "-n", "8", "--json", "--raw", GATE).data["tokens"]
    folder = tmp_path / "folder"
    assert call("convert", "pronghorn-tiny", str(folder)).status == 0
    assert call(*RUN, "--model", str(folder), "-n", "8", "--json", "--raw", GATE).data["tokens"] == want


def test_convert_does_not_overwrite(call, tmp_path):
    target = tmp_path / "a.gguf"
    target.write_text("mine")
    assert "--force" in call.refused("convert", "pronghorn-tiny", str(target))
    assert target.read_text() == "mine"
    data = call("convert", "pronghorn-tiny", str(target), "--force", "--json").data
    assert data["nbytes"] == target.stat().st_size
    assert data["path"] == str(target)


def test_convert_refuses_what_cannot_be_written(call, tmp_path):
    assert "q5" in call.refused("convert", "pronghorn-tiny", str(tmp_path / "a.gguf"), "--dtype", "q5")
    assert "f32" in call.refused("convert", "pronghorn-tiny", str(tmp_path / "a.bin"), "--dtype", "bf16")
    assert "does not exist" in call.refused("convert", "/nonexistent", str(tmp_path / "a.gguf"))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_while_converting(tmp_path):
    target = tmp_path / "a.gguf"
    done = _shell("convert", "pronghorn-tiny", str(target), limit=1 << 20)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("pronghorn: no room to write")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------- processes


def _shell(*args: str, limit: int = 0, **more: object) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process; limit: bytes that a file may have."""
    code = "import sys; from pronghorn.cli.main import main; main()"
    if limit:
        code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); " + code
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=120, check=False
    )


def _start(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "pronghorn.cli.main", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_exit_statuses_of_a_process():
    assert _shell("--version").returncode == 0
    bad = _shell("run", "--backend", "ref", "--use", "nothing-like-it", "hi")
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr


def test_ctrl_c(tmp_path):
    with _start(*RUN, "-n", "900", "--raw", "--plain", "Once upon a time") as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_closed_pipe():
    with _start(*RUN, "-n", "900", "--raw", "--plain", "Once upon a time") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=60)
    assert process.returncode == 141
    assert err == ""


@pytest.mark.parametrize("command", ["run --backend ref -n 4 hi", "methods", "info --json"])
def test_output_that_goes_nowhere(command):
    """A closed pipe, a full disk and a closed stdout, each with one exit status and no traceback."""
    shell = f"{sys.executable} -m pronghorn.cli.main {command}"
    for target, status in (("| (exec <&-; sleep 2)", 141), ("> /dev/full", 2), (">&-", 0)):
        line = f"set -o pipefail; {shell} {target}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in done.stderr
        assert "internal error" not in done.stderr
        assert done.returncode == status, (target, done.stderr)


def test_the_native_runner_answers(call):
    pytest.importorskip("pronghorn.ops.cpu._native")
    data = call("run", "--draft", "prompt-lookup", "--threads", "1", "-n", "30", "--raw", "--json", LOOP).data
    assert data["stats"]["accepted"] > 0
    plain = call("run", "--threads", "1", "-n", "30", "--raw", "--json", "--plain", LOOP).data
    assert data["tokens"] == plain["tokens"]


def test_a_bug_is_one_line_unless_asked(call, monkeypatch):
    monkeypatch.setattr("pronghorn.cli.run.play", lambda llm, stream: 1 / 0)
    result = call(*RUN, "hi")
    assert result.status == 70
    assert result.err.count("\n") == 1
    assert "ZeroDivisionError" in result.err
    monkeypatch.setenv("PRONGHORN_DEBUG", "1")
    assert "Traceback" in call(*RUN, "hi").err


def test_start_imports_no_heavy_library():
    code = (
        "import sys\nfrom pronghorn.cli.main import main\n"
        "try: main(['run', '--backend', 'ref', '-n', '2', 'hi'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = ['torch', 'transformers', 'huggingface_hub', 'llguidance', 'gguf', 'prompt_toolkit']\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_an_answer_waits_for_no_import_of_numpy_s():
    """NumPy imports some of its parts when a function first needs them; one of those takes 7 ms."""
    pytest.importorskip("pronghorn.ops.cpu._native")
    code = (
        "import sys\nfrom pronghorn.llm import LLM\nllm = LLM(threads=1)\n"
        f"assert len(llm.generate({LOOP!r}, max_tokens=40).tokens) == 40\nllm.close()\n"
        "print('numpy.ma' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "False\n"


# ---------------------------------------------------------------------------------- colours


class _Terminal:
    """A stdout that says it is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_drafted_tokens_are_coloured_and_the_text_is_unchanged(monkeypatch):
    llm = LLM(use=["prompt-lookup"], backend="ref")
    stream = llm.stream(LOOP, max_tokens=40)
    items = list(stream)
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    painter = paint.Painter(llm.tokenizer)
    for item in items:
        painter.write(item)
    answer = stream.answer
    parts = terminal.text.split(paint.DRAFTED)
    lit = "".join(p.partition(paint.PLAIN)[0] for p in parts[1:])
    assert terminal.text.replace(paint.DRAFTED, "").replace(paint.PLAIN, "") == answer.text
    right = [d is not Origin.MODEL for i in items for d in i.origins]
    want = llm.tokenizer.decode([t for t, d in zip(answer.tokens, right, strict=True) if d])
    assert lit == want != ""
    assert painter.drafted
    monkeypatch.setenv("NO_COLOR", "1")
    assert not paint.has_colour(terminal)


def test_colours_follow_characters_of_several_tokens(monkeypatch):
    llm = LLM(backend="ref")
    text = "“é” 😀 ü, stop"
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    painter = paint.Painter(llm.tokenizer)
    stream = TextStream(llm.tokenizer, ["pot"], [])
    tokens = llm.tokenizer.encode(text)
    assert len(tokens) > len(text.split())
    for i, token in enumerate(tokens):
        painter.write(Piece(stream.push(token), (token,), (bool(i % 2),)))
    painter.write(Piece(stream.flush(), (), ()))
    assert terminal.text.replace(paint.DRAFTED, "").replace(paint.PLAIN, "") == text
    assert terminal.text.count(paint.DRAFTED) == terminal.text.count(paint.PLAIN) > 1


def test_an_answer_cannot_steer_the_terminal(monkeypatch):
    llm = LLM(backend="ref")
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    for colour in ("", "1"):
        monkeypatch.setenv("NO_COLOR", colour)
        painter = paint.Painter(llm.tokenizer)
        tokens = tuple(llm.tokenizer.encode("\x1b]0;title\x07\n"))
        painter.write(Piece("\x1b]0;title\x07\n", tokens, (Origin.MODEL,) * len(tokens)))
    assert terminal.text == "\\x1b]0;title\\x07\n" * 2


# ---------------------------------------------------------------------------------- chat


def test_chat_from_a_pipe(call):
    lines = f"{GATE}\n\nAnd what is the code again?\n/stats\n"
    result = call("chat", "--backend", "ref", "-n", "8", stdin=lines)
    assert result.status == 0
    llm = LLM(backend="ref")
    messages = [{"role": "user", "content": GATE}]
    one = llm.chat(messages, max_tokens=8).text
    messages += [{"role": "assistant", "content": one}]
    messages += [{"role": "user", "content": "And what is the code again?"}]
    two = llm.chat(messages, max_tokens=8).text
    assert result.out == f"{one}\n{two}\n"
    assert "2 answers" in result.err
    assert "drafted" in result.err.splitlines()[-1]
    assert "reused" in result.err.splitlines()[1]  # the second turn starts from the first one's rows


def test_chat_commands(call, tmp_path):
    file = tmp_path / "talk.json"
    lines = f"/system Be brief.\nhi\n/save {file}\n/reset\n/help\n/stats\n/quit\nnever answered\n"
    result = call("chat", "--backend", "ref", "-n", "2", stdin=lines)
    assert result.status == 0
    saved = json.loads(file.read_text())
    assert [m["role"] for m in saved] == ["system", "user", "assistant"]
    assert "/reset" in result.err
    assert "0 answers" in result.err
    assert len(result.out.splitlines()) == result.out.count("\n")


def test_chat_errors_do_not_end_it(call, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    lines = f"/nonsense\n/save {taken}\n/save\n/save /nonexistent/x\nhi\n"
    result = call("chat", "--backend", "ref", "-n", "2", stdin=lines)
    assert result.status == 2
    assert result.err.count("pronghorn: ") == 4
    assert "first token" in result.err
    assert taken.read_text() == "mine"


def test_chat_never_drops_turns(call):
    long = "word " * 900
    result = call("chat", "--backend", "ref", "-n", "2", stdin=f"{long}\n{long}\nhi\n/stats\n")
    assert result.status == 2
    assert result.err.count("/reset starts a new one") == 1
    assert "2 answers" in result.err  # the message that did not fit is not part of the conversation


def test_chat_says_when_the_context_is_full(call):
    result = call("chat", "--backend", "ref", "-n", "200", stdin="word " * 1000 + "\n")
    assert result.status == 0
    assert "context of 1,024 tokens is full" in result.err


def test_chat_needs_a_template(call, tmp_path):
    folder = cli.copy_tiny(tmp_path)
    cli.change_json(folder / "tokenizer_config.json", chat_template=None)
    assert "chat template" in call.refused("chat", "--backend", "ref", "--model", str(folder), stdin="hi\n")
    assert "chat template" in call.refused(*RUN, "--chat", "--model", str(folder), "hi")
    assert call(*RUN, "--model", str(folder), "-n", "2", "hi").status == 0


def test_ctrl_c_stops_the_answer_and_not_the_chat():
    command = [sys.executable, "-u", "-m", "pronghorn.cli.main", "chat", "--backend", "ref", "--plain"]
    with subprocess.Popen(
        [*command, "-n", "900"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("Tell me a long story about a fox and a hen.\n")
        process.stdin.flush()
        process.stdout.read(1)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate("hi\n/stats\n", timeout=120)
    assert process.returncode == 0, err
    assert "stopped" in err
    assert "1 answer," in err
    assert out.count("\n") >= 2


def test_history_that_cannot_be_written_is_a_warning(call, monkeypatch, tmp_path):
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from pronghorn.cli import chat

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    kept = chat._history()
    assert isinstance(kept, FileHistory)
    kept.append_string("hello")
    assert "hello" in (tmp_path / "pronghorn" / "history").read_text()
    assert (tmp_path / "pronghorn" / "history").stat().st_mode & 0o077 == 0
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    call.capsys.readouterr()
    assert isinstance(chat._history(), InMemoryHistory)
    assert "history will not be kept" in call.capsys.readouterr().err
