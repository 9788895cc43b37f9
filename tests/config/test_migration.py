"""Launchers of the field: every flag has a fate, and a translated launcher is one of ours."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.cli import main
from miles_lite.commands.migrate import main as migrate
from miles_lite.commands.migrate.python_script import python_launcher
from miles_lite.commands.migrate.shell_script import shell_launcher
from miles_lite.config.field_flags import ANSWERS, Fate, answer_to
from miles_lite.config.flags import every_option
from miles_lite.config.migration import translate
from miles_lite.config.options import Config, parse
from miles_lite.errors import UserError
from tests.config.helpers import NEEDED, SURFACE

LAUNCHER = r"""
#!/bin/bash
pkill -9 sglang   # not ours
NUM_GPUS=4
source "models/qwen3-4B.sh"
CKPT_ARGS=(
   --hf-checkpoint /root/Qwen3-4B
   # --load /root/old
   --save /root/out --save-interval 20
)
ROLLOUT_ARGS=(
   --prompt-data /root/dapo.jsonl
   --input-key prompt --label-key label
   --apply-chat-template --rollout-shuffle
   --rm-type deepscaler
   --num-rollout 30 --rollout-batch-size 32 --n-samples-per-prompt 8
   --train-backend megatron
   --dump-details "/root/dump it"
)
WANDB_ARGS=( --use-wandb --wandb-team us --disable-wandb-random-suffix )
ray job submit -- python3 train.py \
   --actor-num-nodes 1 \
   --actor-num-gpus-per-node ${NUM_GPUS} \
   --colocate --update-weight-transfer-mode broadcast \
   --multimodal-keys '{"image": "images"}' --no-such-flag 3 \
   ${MODEL_ARGS[@]} \
   ${CKPT_ARGS[@]} ${ROLLOUT_ARGS[@]} ${WANDB_ARGS[@]}
"""


def lines_of(launcher: str) -> list[str]:
    """Each of its words that are flags, with its values."""
    return [line.removesuffix(" \\").strip() for line in launcher.splitlines()]


def test_no_flag_of_the_table_is_declared_but_for_some_of_its_values() -> None:
    own = {name for each in every_option(Config) for name in (each.flag, *each.option.aka)}
    for name, answers in ANSWERS.items():
        assert f"--{name}" not in own or all(answer.values for answer in answers), name
        assert all((answer.ours is None) == (answer.fate is not Fate.MAPPED) for answer in answers), name


def test_what_is_mapped_can_be_parsed() -> None:
    for name, answers in ANSWERS.items():
        for answer in answers:
            if answer.ours is not None:
                parse([*NEEDED, "--label-key", "l", *answer.ours(["some/folder"])])
                assert answer_to(name, [*answer.values[:1], "x"]) == answer


def test_a_run_takes_a_launchers_flags_and_says_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    argv = (
        "--dump-details d --use-fault-tolerance --fp8-format e4m3 --swiglu --num-layers 3 --chat-template-path autofix"
    )
    config, leftovers = parse([*NEEDED, *argv.split(), "--update-weight-transfer-mode", "broadcast"])
    assert config.debugging.save_debug_rollout_data == str(Path("d/rollout_data/{rollout_id}.pt").absolute())
    assert config.session.chat_template_path is None
    assert config.updates.update_weight_transfer_mode == "distributed"
    leftovers.show_ignored()
    said = capsys.readouterr().err
    assert (
        "--dump-details: --save-debug-rollout-data d/rollout_data/{rollout_id}.pt --trajectory-dir d/trajectory: "
        in said
    )
    assert "ignored: --swiglu, --num-layers: the checkpoint's config.json has the model's shape" in said
    with pytest.raises(UserError, match="--multimodal-keys: prompts are text"):
        parse([*NEEDED, "--multimodal-keys", "{}"])


def test_a_shell_launcher_becomes_one_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.sh"
    file.write_text(LAUNCHER)
    assert main(["migrate", str(file), "--json", str(tmp_path / "out.json")]) == 0
    said = capsys.readouterr()
    assert "NUM_GPUS=4\n" in said.out
    assert "--save-debug-rollout-data '/root/dump it/rollout_data/{rollout_id}.pt'" in lines_of(said.out)
    assert "--actor-num-gpus-per-node ${NUM_GPUS}" in lines_of(said.out)
    assert "--load" not in said.out
    assert "mapped: --train-backend: left out: Hugging Face models are trained by FSDP2" in said.err
    assert "by hand: line 25: --multimodal-keys: refused: " in said.err
    assert "by hand: line 25: --no-such-flag: not known: " in said.err
    told = json.loads((tmp_path / "out.json").read_text())[str(file)]
    assert (told["unknown"], list(told["refused"])) == (["--no-such-flag"], ["--multimodal-keys"])
    flags = [line for line in lines_of(said.out.replace("${NUM_GPUS}", "4")) if line.startswith("--")]
    config, leftovers = parse(shlex.split(" ".join(flags)))
    assert (config.topology.world_size, config.rewards.rm_type, leftovers.replaced) == (4, ("deepscaler",), ())


def test_an_asynchronous_launcher_stays_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in (("train", "train"), ("train_async", "train-async")):
        file = tmp_path / f"{name}.sh"
        file.write_text(LAUNCHER.replace("train.py", f"{name}.py"))
        assert main(["migrate", str(file)]) == 0
        assert f"exec miles-lite {command}" in lines_of(capsys.readouterr().out)


def test_a_python_launcher_is_read_without_being_run() -> None:
    text = 'raise SystemExit\nargs = f"--lr {x} --hf-checkpoint {base}/m " "--colocate "\nargs += "--rm-type f1 "\n'
    found = list(python_launcher(text).flags())
    assert [each.source for each in found] == ['--lr "$x"', '--hf-checkpoint "$x/m"', "--colocate", "--rm-type f1"]
    assert [each.line for each in found] == [2, 2, 2, 3]


def test_placeholders_count_as_any_value_and_others_are_checked() -> None:
    said = translate(
        [("--lr", ["x"]), ("--pause-generation-mode", ["8"]), ("--eps-clip", ["-1"]), ("--sglang-device", ["npu"])]
    )
    assert said.accepted == ["--lr", "--pause-generation-mode"]
    assert translate([("--prompt-data", []), ("--colocate", ["fi"])]).accepted == ["--prompt-data", "--colocate"]
    assert said.refused["--eps-clip"] == "--eps-clip -1.0: must be at least 0"
    assert "invalid choice: 'npu'" in said.refused["--sglang-device"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give a LAUNCHER, or --flags FILE"),
        (["nowhere.sh"], "LAUNCHER nowhere.sh: cannot be read: No such file"),
        ([str(SURFACE)], "no flags of a train.py in it"),
        (["{folder}/half.py"], "LAUNCHER .*/half.py: no Python: "),
        (["--flags", __file__], "--flags .*: cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said(argv: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text("args = '--lr 1")
    argv = [each.format(folder=tmp_path) for each in argv]
    with pytest.raises(UserError, match=message):
        migrate(argv)


HARD = r"""
set -ex
declare -a CKPT=( --hf-checkpoint "/a/b" # --not-this
  --load="$(find --newest "q")" )
[[ -n $X ]] && CKPT+=(--only-if-x "$X")
cd /root && CKPT+=(--save /out/${NAME})
NAME="${RUN:-run}-$(date +%s)"
if [ "$A" = 1 ]; then PERF=(--if-branch 1)
else
  PERF=(--else-branch 2)
fi
for f in a b; do CKPT+=(--in-loop $f); done
EXTRA="--lr 1e-6 \
  --rollout-batch-size 32"
N=${#CKPT[@]}
readonly -a MORE=(--n-samples-per-prompt 8)
JUDGE_SERVER=(--tp-size 4)
python -m sglang.launch_server "${JUDGE_SERVER[@]}" --port-of-judge 3
ray job submit --address="http://127.0.0.1:8265" --runtime-env-json='{"env_vars": {}}' \
  -- python3 miles/train_async.py --colocate \
   ${CKPT[@]} $EXTRA "${MORE[@]}" ${PERF[@]} ${MODEL_ARGS[@]} \
   --wandb-group '$literal' --apply-chat-template-kwargs '{"a": "'$NAME'"}' 2>&1 | tee log
cat <<EOF
in a text: --of-a-heredoc 3
EOF
OTHER=`ls --in-backticks`
"""


def test_what_a_shell_can_do_loses_no_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.sh"
    file.write_text(HARD.replace("\n", "\r\n"), newline="")
    assert main(["migrate", str(file)]) == 0
    said = capsys.readouterr()
    subprocess.run(["bash", "-n"], input=said.out, text=True, check=True)
    for line in (
        '--hf-checkpoint "/a/b"',
        '--load="$(find --newest "q")"',
        "--save /out/${NAME}",
        "--lr 1e-6",
        "--rollout-batch-size 32",
        "--n-samples-per-prompt 8",
        "--colocate",
        "--wandb-group '$literal'",
        """--apply-chat-template-kwargs '{"a": "'$NAME'"}'""",
    ):
        assert line in lines_of(said.out)
    assert '\nNAME="${RUN:-run}-$(date +%s)"\n' in said.out
    for line in (
        '5: --only-if-x "$X": only under `[[ -n $X ]]`',
        '8: --if-branch 1: only under `if [ "$A" = 1 ]; then PERF=(--if-branch 1)`',
        '10: --else-branch 2: only under `if [ "$A" = 1 ]; then PERF=(--if-branch 1)`',
        "12: --in-loop $f: only under `for f in a b; do CKPT+=(--in-loop $f); done`",
        "17: --tp-size: in no command of train.py",
        "18: --port-of-judge: of `python`",
        "19: --address: of `ray`",
        "21: ${MODEL_ARGS[@]}: is not set in this file",
        "24: --of-a-heredoc: in no command of train.py",
        "26: --in-backticks: of `ls`",
    ):
        assert f"by hand: line {line}\n" in said.err
    assert "not-this" not in said.out + said.err


ADDING = r"""
ARGS="--hf-checkpoint /m"
ARGS="$ARGS --lr 1e-6 --colocate"
ARGS="${ARGS} \
  --seed 3"
A=(--num-rollout 3)
A=("${A[@]}" --rollout-batch-size 4)
MORE="$A $ARGS --save /x"
python train.py $MORE
"""


def test_what_a_shell_adds_to_its_own_is_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.sh"
    file.write_text(ADDING)
    assert main(["migrate", str(file)]) == 0
    said = capsys.readouterr()
    arrays = dict(re.findall(r"^(\w+)=\(\n(.*?)\n\)$", said.out, re.DOTALL | re.MULTILINE))
    assert {name: text.split() for name, text in arrays.items()} == {
        "ARGS": "--hf-checkpoint /m --lr 1e-6 --colocate --seed 3".split(),
        "A": "--num-rollout 3 --rollout-batch-size 4".split(),
        "MORE": "--save /x".split(),
    }
    assert "by hand" not in said.err


NOT_KNOWN = r"""
run() {
  local more=("$@")
  python train.py --hf-checkpoint "$1" ${EXTRA} --lr ${LR:-1e-6} --save $OUT/$NAME "${more[@]}"
}
"""


@pytest.mark.parametrize(
    ("text", "ours", "told"),
    [
        (NOT_KNOWN, "--lr ${LR:-1e-6}", ['3: more=("$@"): of who calls it', '4: "$1": of who']),
        (NOT_KNOWN, "", ["4: $OUT: is not set in this file", "4: $NAME: is not set in this file"]),
        ("python train.py ${EXTRA} --lr 1 ${MORE[@]:-}", "--lr 1", ["1: ${EXTRA}: what it holds is not known"]),
        ("for lr in 1 2; do python train.py --lr $lr; done", "--lr $lr", ["1: train.py: only under `for lr in"]),
        ("if x; then python train.py --lr 1; fi", "--lr 1", ["1: train.py: only under `if x; then"]),
        ("A=(--lr 1)\nA[3]=--save\npython train.py ${A[@]}", "--lr 1", ["2: --save: in no command of train.py"]),
        ("python train.py --prompt-data <(zcat x.gz) --lr 1", "--prompt-data <(zcat x.gz)", []),
        ("python train.py --prompt-data=<(zcat x.gz) --lr 1", "--prompt-data=<(zcat x.gz)", []),
        ("V='a b'; python train.py --dump-details \"$V\"/x", '--trajectory-dir "$V"/x/trajectory', []),
        ("OLD_ARGS=(--lr 1)\npython train.py --lr 2", "--lr 2", ["1: --lr: in no command of train.py"]),
        ("python train.py extra --lr 2", "--lr 2", ["1: extra: stands behind no flag"]),
        ("ARGS=(\n --lr 1\npython train.py ${ARGS[@]}", "", ["3: a missing ): cannot be read as shell"]),
    ],
)
def test_what_a_launcher_does_not_say_itself_is_left_by_hand(
    text: str, ours: str, told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.sh").write_text(text)
    assert main(["migrate", str(tmp_path / "run.sh")]) == 0
    said = capsys.readouterr()
    subprocess.run(["bash", "-n"], input=said.out, text=True, check=True)
    assert ours in said.out
    assert [each for each in told if f"by hand: line {each}" not in said.err] == []


PLACES = (
    "A_ARGS=({})",
    "A_ARGS+=( {} )",
    "true && A_ARGS+=({})",
    '[ -n "$X" ] && A_ARGS+=({})',
    "if x; then A_ARGS=({}); else y; fi",
    "for i in 1 2; do A_ARGS+=({}); done",
    "case $X in a) A_ARGS=({});; esac",
    'V="{}"',
    "export V='{}'",
    "f() {{ python train.py {} $V; }}",
    "python train.py {} \\\n  ${{A_ARGS[@]}} $V",
    'bash -c "cd x && python3 train.py {}"',
    "other_command {}",
    "cat <<EOF\n{}\nEOF",
    "x=$(other {})",
    "y=`other {}`",
    "declare -a B=({})",
    "local -r C='{}'",
    "echo ${{#A_ARGS[@]}} {}",
    "if [[ broken ( {}",
)
FLAGS = st.from_regex(r"--[a-z]{2,4}(-[a-z]{2,4}){0,2}", fullmatch=True)
VALUES = st.sampled_from(["", "1", "$V", "${N:-x}", "'a b'", '"$(pwd)/x"', "\\\n  3", "# word", "a=b"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), FLAGS, VALUES), min_size=1, max_size=6), st.booleans())
def test_no_flag_of_a_shell_launcher_is_lost(rows: list[tuple[str, str, str]], windows: bool) -> None:
    rows = [(place, flag, value if "{}" in place and "#" not in value else "") for place, flag, value in rows]
    text = "python train.py --lr 1\n" + "".join(f"{place.format(f'{flag} {value}')}\n" for place, flag, value in rows)
    launcher = shell_launcher(text.replace("\n", "\r\n") if windows else text)
    told = {each.flag: each.line for each in launcher.flags()}
    words = {word: line for line, what in launcher.by_hand for word in re.findall(r"--[a-z-]+", what)} | told
    lines = text.splitlines()
    for _, flag, _ in rows:
        assert flag in words
        assert flag in lines[words[flag] - 1]


STUB = r"""#!/bin/bash
shift
for word; do
  case $word in
    /dev/fd/*) printf '%s' "<$(cat "/dev/fd/${word#/dev/fd/}" 2> /dev/null)>" ;;
    *) printf '%s' "$word" ;;
  esac
  printf '\0'
done
"""
"""Says what it was called with, of a pipe what comes out of it."""
PRELUDE = r"""
V='two  words'
EMPTY=
L=(one "two three" '*')
"""
PIECES = st.sampled_from(
    r"""
a.b/c
'q  w'
"d $V"
a\ b
${V}
"${V}"
${EMPTY}
""
$(printf 'x y')
"$(cat <<< "h $V")"
$(cat <<< 'i j')
`printf k`
$((1+2))
${UNSET:-y}
"${L[@]}"
${L[1]}
${#L[@]}
$'a\tb'
{l,m}
*
~
[v]
"\$n"
\$t
"\"o\""
'{"p": "$q"}'
"a=b"
r=s
'-u'
""".strip().splitlines()
)
SHELL_WORDS = st.lists(PIECES, min_size=1, max_size=3).map("".join)
PIPES = st.sampled_from(["<(printf z)", '<(cat <<< "$V")'])
SHELL_FLAGS = st.builds(
    lambda name, equals, words: f"--sglang-{name}{'=' if equals and words else ' '}{' '.join(words)}",
    st.sampled_from("abc"),
    st.booleans(),
    st.lists(SHELL_WORDS, max_size=2),
)
PIPED_FLAGS = st.builds("--sglang-{}{}{}".format, st.sampled_from("abc"), st.sampled_from(["=", " "]), PIPES)
INLINE = st.one_of(SHELL_FLAGS, PIPED_FLAGS, st.sampled_from(['<<< "$V"', '"${A[@]}"', '"${B[@]}"', "$T", "2> log"]))


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run in, whose `python` and `miles-lite` say what they are called with."""
    folder = tmp_path_factory.mktemp("stubs")
    for name in ("python", "miles-lite"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    return folder


def called_with(script: str, stubs: Path) -> list[str]:
    (stubs / "run.sh").write_text(script)
    variables = {"PATH": f"{stubs}:{os.environ['PATH']}", "HOME": str(stubs)}
    (stubs / "log").write_text("")
    done = subprocess.run(["bash", "run.sh"], cwd=stubs, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.stderr, script)
    return f"{done.stdout}{(stubs / 'log').read_text()}".split("\0")


@settings(max_examples=60, deadline=None)
@given(
    array=st.lists(SHELL_FLAGS, min_size=1, max_size=2),
    more=st.lists(SHELL_FLAGS, min_size=1, max_size=2),
    behind=st.lists(INLINE, min_size=1, max_size=5, unique=True),
    blank=st.sampled_from([" ", "\t", " \\\n   ", "   \\\n"]),
    ends=st.sampled_from(["", " > log 2>&1", " 2>&1 | cat", " && true", "; true", " # done", " || exit 1"]),
)
def test_a_translated_launcher_passes_what_the_launcher_did(
    array: list[str], more: list[str], behind: list[str], blank: str, ends: str, stubs: Path
) -> None:
    theirs = f"{PRELUDE}A=({' '.join(array)})\nV='another time'\nB=(\n  " + "\n  ".join(more) + "\n)\n"
    theirs += 'T="--sglang-t $V \\\n  --sglang-u x"\npython train.py --sglang-z ' + blank.join(behind) + ends + "\n"
    (stubs / "theirs.sh").write_text(theirs)
    ours = io.StringIO()
    with contextlib.redirect_stdout(ours), contextlib.redirect_stderr(io.StringIO()):
        assert main(["migrate", str(stubs / "theirs.sh")]) == 0
    assert called_with(ours.getvalue(), stubs) == called_with(theirs, stubs), ours.getvalue()


PYTHON = '''
"""Docs: --not-this 1"""
args = ["--lr", "1e-6", f"--save={out}", "--colocate"]
cmd = ["ray", "job", "--address", url, "--", "python", "train.py", "--rm-type", "f1", *args]
if fast:
    args += ["--if-fast", "3"]
parser.add_argument("--own-flag", default=3)
extra = {"--rollout-batch-size": 8}
if "--compared" in sys.argv:
    pass
text = (
    f"--n-samples-per-prompt {n} "
    "--num-rollout 3"
)
print("say --in-prose")
'''


def test_no_flag_of_a_python_launcher_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.py"
    file.write_text(PYTHON)
    assert main(["migrate", str(file)]) == 0
    said = capsys.readouterr()
    subprocess.run(["bash", "-n"], input=said.out, text=True, check=True)
    for line in ("--lr 1e-6", '--save="$x"', "--colocate", "--rm-type f1", "--rollout-batch-size 8", "--num-rollout 3"):
        assert line in lines_of(said.out)
    for line in (
        '12: --n-samples-per-prompt "$x": $x stands for an expression',
        "4: --address: ",
        "6: --if-fast 3: under the condition of line 5",
        "7: --own-flag: a flag of the launcher's own",
        "9: --compared: compared with something",
        "15: --in-prose: in a text that is no command line",
    ):
        assert f"by hand: line {line}" in said.err
    assert "not-this" not in said.out + said.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('python train.py --lr "1e-6\n', 'line 1: "1e-6: cannot be read as shell'),
        ("(" * 3000 + "python train.py --lr 1" + ")" * 3000, "--lr"),
    ],
)
def test_what_is_no_shell_loses_no_flag_either(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.sh").write_text(text)
    code, told = main(["migrate", str(tmp_path / "run.sh")]), capsys.readouterr()
    assert (said in told.err) if code == 0 else ("no flags of a train.py in it" in told.err)
