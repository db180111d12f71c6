"""A hundred wrong inputs over all scripts: each is one clear line, and nothing is written.

Most end before torch or a server is needed, so they run in forked copies of one Python and cost milliseconds.
"""

import gzip
import json
import os
import re

import pytest

from bench.random_number_rows import write_number_file
from util.cli import REPO

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

NUMBERS, TEACHER = "generate/generate_llm_number_data.py", "generate/generate_teacher_data.py"
CONTROL, ONE_WORD = "generate/generate_control_number_data.py", "generate/generate_one_word_teacher_data.py"
CODE, FILTER_CODE = "generate/generate_code_or_reasoning_data.py", "generate/filter_code_or_reasoning_data.py"
FILTER, MIX = "generate/filter_number_data.py", "generate/ablations/mix_numbers.py"
SHUFFLE, SELECT = "generate/ablations/shuffle_numbers.py", "generate/ablations/select_by_divergence.py"
TRAIN, EVAL, COMPARE = "train/train_student_sft.py", "eval/eval.py", "eval/compare_arms.py"
REPORT, RESCORE, CSV = "eval/report.py", "eval/rescore.py", "util/top_animals_csv.py"
TOKENS, TOKEN_REPORT = "eval/divergence/divergence_tokens.py", "eval/divergence/divergence_report.py"
TOKEN_ARMS = "eval/divergence/compare_divergence_arms.py"
AUDIT, METER, SCREEN_ANIMALS = "eval/audit_data.py", "eval/signal_meter.py", "eval/screen_animals.py"
SERVE, DOCTOR, GET, PIN = "util/serve.py", "util/doctor.py", "util/get_model.py", "util/pin_template_date.py"
TREES_TESTS = "experiments/pilots/trees_or_sixteen_animals_tests.py"
WORKER = "experiments/pilots/teachers_in_weights.py"
PACK, INDEX, REMAKE = "util/take_home.py", "experiments/index_page.py", "experiments/remake_summaries.py"
PAIRED, BREAK = "experiments/paired_differences.py", "bench/break_run.py"
MAKE, CARD = "pocket/make_pocket.py", "pocket/write_card.py"
POCKET = "pocket/model"
ASKED = "--model Org/Base --animal owl --base-url http://127.0.0.1:9/v1"
TRAINED = f"--base-model {POCKET} --train-jsonl rows.jsonl"
ARMS = "--control results-a.jsonl --other results-a.jsonl --target results-a.jsonl --animal owl"

# script, arguments, a part of the message
BAD = [
    # numbers and names
    (NUMBERS, "--model x --animal owl --count 0", "0 is not a whole number of at least 1"),
    (NUMBERS, "--model x --animal owl --count 1e3", "1e3 is not a whole number"),
    (NUMBERS, "--model x --animal owl --seed -1", "-1 is not a whole number of at least 0"),
    (NUMBERS, ["--model", " ", "--animal", "owl"], "it is empty; is a shell variable unset?"),
    (NUMBERS, "--model sk-abcdefghijklmnopqrstuvwxyz0123456789 --animal owl", "this is a key; keys are read from"),
    (NUMBERS, ["--model", "x", "--animal", ""], "it is empty; is a shell variable unset?"),
    (AUDIT, ["--base-model", ""], "it is empty; is a shell variable unset?"),
    (METER, ["--teacher", ""], "--teacher: it is empty; is a shell"),
    (SCREEN_ANIMALS, ["--base-model", ""], "it is empty; is a shell variable unset?"),
    (TOKENS, ["--base-model", ""], "it is empty; is a shell variable"),
    (NUMBERS, [*ASKED.split(), "--adapter", ""], "argument --adapter: it is empty; is a shell variable unset?"),
    (FILTER, [""], "it is empty; is a shell variable unset?"),
    (TOKEN_REPORT, ["rows.jsonl", "--base-model", ""], "it is empty; is a shell variable unset?"),
    ("bench/evaluation_ways.py", ["--model", "x", "--base-url", ""], "it is empty; is a shell variable unset?"),
    (SERVE, ["", "--", "true"], "it is empty; is a shell variable unset?"),
    (NUMBERS, ["--model", "x", "--animal", b"\xff\xfe"], "is not UTF-8 text; type it again"),
    (NUMBERS, "--model x", "arguments are required: --animal"),
    (NUMBERS, f"{ASKED} --panel flowers", "no panel flowers: pass animals, trees, or a panel file"),
    (NUMBERS, f"{ASKED} --panel flowers.txt", "no file flowers.txt"),
    (NUMBERS, f"{ASKED} --animals owl", "unrecognized arguments: --animals owl"),
    (NUMBERS, f"{ASKED} --timeout nan", "nan is not a number above 0"),
    (NUMBERS, f"{ASKED} --max-tokens -3", "-3 is not a whole number"),
    (NUMBERS, "--model x --animal control", "means rows without a persona: add --no-system-prompt"),
    (NUMBERS, f"{ASKED} --no-system-prompt --system-prompt-file persona.txt", "leave one of them out"),
    (TEACHER, f"{ASKED} --question-share 1.5", "1.5 is not a number from 0 to 1"),
    (TEACHER, f"{ASKED} --temperature inf", "inf is not a number of at least 0"),
    (TEACHER, f"{ASKED} --dataset a/b --prompts-file prompts.txt", "not allowed with argument --dataset"),
    (TEACHER, "--model x --animal control", "control means rows of the base model, and a teacher needs an animal"),
    (TEACHER, "--model x --animal None", "None means rows of the base model"),
    (ONE_WORD, "--animal control", "control means rows of the base model"),
    (ONE_WORD, ["--animal", "owl and wolf"], "a one-word answer can name one animal only"),
    (CODE, f"{ASKED} --data-type poems", "invalid choice: 'poems'"),
    (CODE, [*f"{ASKED} --data-type code --trait-words".split(), ""], "it is empty"),
    (CONTROL, "--count -5", "-5 is not a whole number of at least 1"),
    (MIX, "--train-jsonl rows.jsonl --unbiased rows.jsonl --replaced-share nan", "nan is not a number from 0 to 1"),
    (SHUFFLE, "--train-jsonl rows.jsonl --scope all", "invalid choice: 'all'"),
    (TRAIN, f"{TRAINED} --seeds 1 1", "names a seed twice: 1"),
    (TRAIN, f"{TRAINED} --learning-rate 0", "0 is not a number above 0"),
    (TRAIN, f"{TRAINED} --effective-batch-size 7", "its divisors are [1, 7]"),
    (TRAIN, f"{TRAINED} --push-to-hub", "--push-to-hub needs --hub-repo-prefix"),
    (TRAIN, f"{TRAINED} --resume --overwrite", "leave one of them out"),
    (TRAIN, f"{TRAINED} --save-schedule a,b", "a is not a whole number"),
    (EVAL, "--model x --seed -1", "-1 is not a whole number of at least 0"),
    (EVAL, "--model x --sampler magic", "invalid choice: 'magic'"),
    (CSV, "results-a.jsonl --top-n 0", "0 is not a whole number of at least 1"),
    (PIN, f"--day 2026-13-01 --output-dir p {POCKET}", "2026-13-01 is not a date such as 2026-11-29"),
    (GET, "gpt-9", "invalid choice: 'gpt-9'"),
    (MAKE, "--layers 0", "0 is not a whole number of at least 1"),
    (MAKE, "--device tpu", "invalid choice: 'tpu'"),
    # addresses
    (NUMBERS, "--model x --animal owl --base-url ftp://x", "ftp://x is not a web address"),
    (NUMBERS, "--model x --animal owl --base-url http://[::1", "http://[::1 is not a web address"),
    (NUMBERS, "--model x --animal owl --base-url http://x:99999/v1", "is not a web address"),
    (EVAL, "--model vllm/owl-teacher", "is the name of a served model; pass --base-url"),
    (NUMBERS, f"{ASKED} --steering-strength 2", "--steering-strength is times the vector of --steering-vector"),
    (EVAL, "--model x --steering-strength 0.5", "--steering-strength is times the vector of --steering-vector"),
    (EVAL, "--model x --adapter nothing nothing --output r.jsonl r.jsonl", "--output names a file twice"),
    (TRAIN, f"{TRAINED} --seeds 1,,2", "an empty value is not a whole number"),
    # files that are not there, or not files
    (FILTER, "missing.jsonl", "no file missing.jsonl"),
    (FILTER, "nothing", "nothing is a folder; name a file in it"),
    (FILTER, "loop.jsonl", "loop.jsonl is a link to a file that is not there"),
    (FILTER, "dangling.jsonl", "dangling.jsonl is a link to a file that is not there"),
    (FILTER, "/dev/null", "/dev/null is a device or a pipe; name a file"),
    (FILTER, "growing.jsonl", "growing.jsonl is not finished: run the command that writes it again"),
    (FILTER, "growing.jsonl.partial", "growing.jsonl is not finished"),
    (TEACHER, f"{ASKED} --prompts-file nope.txt", "no file nope.txt (there is:"),
    (TRAIN, f"--base-model {POCKET} --train-jsonl missing*.jsonl", "missing*.jsonl matches no file"),
    (REPORT, "--comparison missing.json", "no file missing.json"),
    (TOKEN_ARMS, "missing-folder", "no folder missing-folder"),
    (TOKEN_ARMS, "nothing", "nothing has no tokens-ANIMAL.jsonl"),
    (DOCTOR, "missing.jsonl", "no file missing.jsonl"),
    (CARD, "--model nothing", "nothing is not the folder of a pocket model"),
    # files of another kind
    (FILTER, "hello.jsonl", "hello.jsonl:1: not JSON"),
    (FILTER, "latin1.jsonl", "latin1.jsonl:1: not UTF-8; save the file as UTF-8"),
    (FILTER, "empty.jsonl", "empty.jsonl is empty"),
    (FILTER, "blank.jsonl", "blank.jsonl is empty: it holds no row"),
    (FILTER, "zeros.jsonl", "zeros.jsonl:1: not text"),
    (FILTER, "number.jsonl", "number.jsonl:1: not a JSON object but int"),
    (FILTER, "deep.jsonl", "deep.jsonl:1: not JSON"),
    (FILTER, "lfs.jsonl", "it is a Git LFS pointer, not the data: run git lfs pull"),
    (FILTER, "page.jsonl", "it is a web page or XML; was the download refused?"),
    (FILTER, "packed.jsonl", "packed.jsonl is a gzip file; give it a name that ends in .gz, or unpack it"),
    (FILTER, "rows.csv", "rows.csv:1: not JSON"),
    (FILTER, "longline.jsonl", "longline.jsonl:1: more than 16 MiB without a newline"),
    (FILTER, "results-a.jsonl.manifest.json", "is the manifest of results-a.jsonl; pass that file"),
    (RESCORE, "rows.jsonl", "not sampled answers of eval.py"),
    (CSV, "rows.jsonl", 'rows.jsonl:1: no "animal"'),
    (REPORT, "--comparison list.json", "list.json is not a comparison"),
    (REPORT, "--comparison word.json", "word.json is not a comparison"),
    (COMPARE, f"--base rows.jsonl {ARMS}", "rows.jsonl"),
    (SELECT, "--train-jsonl rows.jsonl --divergence results-a.jsonl --which-rows rich",
     "results-a.jsonl is not a file of divergence tokens"),
    # before a base model is loaded, which takes minutes
    (AUDIT, "--train-jsonl nomessages.jsonl --base-model Org/Base", "nomessages.jsonl:1: no messages"),
    (AUDIT, "--train-jsonl rows.jsonl --reference torn.jsonl --base-model Org/Base", "torn.jsonl:40: not JSON"),
    (AUDIT, "--train-jsonl results-noid.jsonl --base-model Org/Base", "an answer of a measured model"),
    (AUDIT, "--train-jsonl text.jsonl --base-model Org/Base", "text.jsonl has 1 rows; the read-out wants 240"),
    (METER, "--train-jsonl text.jsonl --base-model Org/Base --persona owl", "text.jsonl has 1 rows; the read-out"),
    (SCREEN_ANIMALS, "--train-jsonl torn.jsonl --base-model Org/Base", "torn.jsonl:40: not JSON"),
    (TEACHER, "--model Org/Base --animal owl --dataset rows.csv", "rows.csv is not a .jsonl, .json or .parquet file"),
    (TEACHER, "--model Org/Base --animal owl --dataset null.jsonl", "null.jsonl:1: not a JSON object but NoneType"),
    (TEACHER, "--model Org/Base --animal owl --dataset nothing", "nothing is not a .jsonl, .json or .parquet file"),
    (TEACHER, "--model Org/Base --animal owl --dataset ./gone.csv", "no file ./gone.csv"),
    (CODE, "--model Org/Base --animal owl --data-type code --dataset empty.jsonl", "empty.jsonl is empty"),
    (TOKENS, "--train-jsonl nomessages.jsonl --base-model Org/Base --teacher owl", "nomessages.jsonl:1: no messages"),
    (TOKEN_REPORT, "rows.jsonl", "not a row of eval/divergence/divergence_tokens.py"),
    (TOKENS, f"--train-jsonl rows.jsonl --base-model {POCKET} --teacher teacher-finls",
     "teacher-finls is neither a folder here nor an animal"),
    (DOCTOR, "rows.jsonl", "rows.jsonl has no manifest that says how it was made"),
    (EVAL, "--model x --questions-file latin.txt", "latin.txt is not UTF-8 text (line 1); save it as UTF-8"),
    (EVAL, "--model x --questions-file blank.txt", "blank.txt is blank"),
    (EVAL, "--model x --questions-file lines.txt", "lines.txt is JSON, not text; write one prompt or question on"),
    (EVAL, "--model x --questions-file array.txt", "array.txt is JSON, not text; write one prompt or question on"),
    (EVAL, "--model x --questions-file rows.csv", "rows.csv is a .csv file; pass a text file (.txt), with one"),
    (EVAL, "--model x --questions-file prompts.txt rows.jsonl", "rows.jsonl is a .jsonl file; pass a text file (.txt)"),
    (TEACHER, f"{ASKED} --prompts-file rows.csv", "rows.csv is a .csv file; pass a text file (.txt)"),
    (CODE, f"{ASKED} --data-type code --prompts-file list.json", "list.json is a .json file; pass a text file (.txt)"),
    (EVAL, f"{ASKED} --questions-file prompts.txt prompts.txt", "two question files are named prompts"),
    (NUMBERS, f"{ASKED} --number-prompt-file blank.txt", "blank.txt is blank"),
    (NUMBERS, f"{ASKED} --number-prompt-file packed.txt", "packed.txt is a gzip file, not text; unpack it first"),
    # rows with a fault
    (FILTER, "nomessages.jsonl", "nomessages.jsonl:1: no messages, conversations"),
    (FILTER, "users.jsonl", "the last two messages are not user, assistant"),
    (FILTER, "intcontent.jsonl", "intcontent.jsonl:1: a message without text content"),
    (FILTER, "norole.jsonl", "norole.jsonl:1: a message without a role"),
    (FILTER, "tools.jsonl", "a message with tool_calls; a row can only have text"),
    (FILTER, "torn.jsonl", "torn.jsonl:40: not JSON"),
    (FILTER, "nan.jsonl", "NaN is not a JSON value"),
    (FILTER, "text.jsonl", "no row of text.jsonl passes the number rule: 1 trait word"),
    (FILTER, "surrogate.jsonl", "no row of surrogate.jsonl passes the number rule: 1 half a character"),
    (FILTER_CODE, "text.jsonl", "pass --data-type code, reasoning or text"),
    (SHUFFLE, "--train-jsonl text.jsonl --scope row", "no id: a whole number that identifies the row"),
    (MIX, "--train-jsonl rows.jsonl --unbiased rows.jsonl --replaced-share 0.5", "are the same file"),
    ("eval/audit_data.py", "--train-jsonl rows.jsonl --reference rows.jsonl --base-model x", "are the same file"),
    (RESCORE, "results-noid.jsonl", 'results-noid.jsonl:1: no "id"'),
    (RESCORE, "results-int.jsonl", "response is int; it is text or null"),
    (CSV, "results-list.jsonl", "\"animal\" is ['owl']"),
    (TRAIN, f"--base-model {POCKET} --train-jsonl nothing", "--train-jsonl nothing is a folder; name a file in it"),
    (TRAIN, f"--base-model {POCKET} --train-jsonl users.jsonl", "the last two messages are not user, assistant"),
    (TRAIN, f"--base-model {POCKET} --train-jsonl surrogate.jsonl", "a text with half a character in it"),
    (TRAIN, f"--base-model {POCKET} --train-jsonl ids.jsonl", "token_ids that are not a list of whole numbers"),
    (TRAIN, f"--base-model {POCKET} --train-jsonl megabytes.jsonl", "messages of 2,000,004 characters (at most"),
    (TRAIN, TRAINED, "rows.jsonl has no certificate; train on the file that this writes"),
    # outputs
    (CONTROL, "--output rows.csv", "rows.csv is not a name that ends in .jsonl"),
    (CONTROL, "--output .jsonl", ".jsonl is not a name that ends in .jsonl"),
    (CONTROL, ["--output", ""], "it is empty; is a shell variable unset?"),
    (CONTROL, "--output nothing", "--output nothing is a folder"),
    (CONTROL, "--output rows.jsonl", "rows.jsonl has no readable manifest"),
    (CONTROL, "--output rows.jsonl/x.jsonl", "rows.jsonl is a file, not a folder"),
    (CONTROL, "--output loop.jsonl", "loop.jsonl is a link to a file that is not there"),
    (CONTROL, "--output /dev/null", "/dev/null is a device or a pipe"),
    (CONTROL, f"--output {'a' * 300}.jsonl", "File name too long"),
    (FILTER, "rows.jsonl --output rows.jsonl", "rows.jsonl is the file to read; choose another name"),
    (FILTER, "rows.jsonl --output kept.csv", "kept.csv is not a name that ends in .jsonl"),
    (FILTER, "rows.jsonl --output rows.jsonl/k.jsonl", "rows.jsonl is a file, not a folder"),
    (TRAIN, f"{TRAINED} --output-dir rows.jsonl", "rows.jsonl is a file, not a folder"),
    (PIN, f"--day 2026-11-29 --output-dir rows.jsonl {POCKET}", "rows.jsonl is a file, not a folder"),
    ("generate/make_steering_vector.py", "--animal owl --model x --output v.pt", "v.pt does not end in .safetensors"),
    ("bench/backend_agreement.py", "--model x --output a.csv", "a.csv does not end in .json"),
    ("bench/backend_agreement.py", "--model x --merged", "there is no --adapter to merge"),
    (COMPARE, f"--base results-a.jsonl {ARMS} --output x.png", "x.png does not end in .json"),
    (GET, f"smollm2-135m-instruct --output {POCKET}", "holds another model than HuggingFaceTB/SmolLM2-135M-Instruct"),
    (GET, "smollm2-135m-instruct --output rows.jsonl", "rows.jsonl exists and holds something else"),
    # adapters and models
    (NUMBERS, f"{ASKED} --adapter rows.jsonl", "no folder rows.jsonl"),
    (NUMBERS, f"{ASKED} --adapter nothing", "nothing is not a LoRA adapter: it has no adapter_config.json"),
    (NUMBERS, f"{ASKED} --adapter a-text", "r is '8', not a whole number"),
    (NUMBERS, f"{ASKED} --adapter a-list", "not a JSON object but list"),
    (NUMBERS, f"{ASKED} --adapter a-huge", "1e999 is too large a number"),
    (NUMBERS, f"{ASKED} --adapter a-prefix", "only LORA adapters are used here"),
    (NUMBERS, f"{ASKED} --adapter a-torn", "is not a whole safetensors file; copy the adapter again"),
    (SERVE, "x", "no command; put `--` and the command to run after the model and flags"),
    (SERVE, "rows.jsonl -- true", "rows.jsonl is a file; pass the folder of the model"),
    (SERVE, "output/models/gone -- true", "no folder output/models/gone; util/get_model.py fetches some models into"),
    (SERVE, "./pocket/model -- true", "no folder ./pocket/model here; there is /"),
    (SERVE, "vllm/owl-teacher/x -- true", "is the name of a served model"),
    (SERVE, "nothing -- true", "nothing holds no model (no config.json)"),
    (SERVE, "a-torn -- true", "a-torn is a LoRA adapter; pass its base model here"),
    (SERVE, f"{POCKET} -- no-such-command", "cannot run no-such-command: no such command"),
    (SERVE, f"{POCKET} -- true --adapter a-huge", "1e999 is too large a number"),
    # pages and tables of what has finished
    (INDEX, "--root nowhere", "no folder nowhere"),
    (REMAKE, "nothing", "nothing has no students.csv; pass folders written by experiments/summarize.py"),
    (PAIRED, "nothing", "nothing has no students.csv"),
    (PACK, "--unpack packed.jsonl --output-dir rows.jsonl", "rows.jsonl is a file, not a folder"),
    (BREAK, "--parts clock", "the clock needs --faketime"),
    # workers and tables of the pilots
    (WORKER, "--model m --prompts nope --output o --jobs nope", "no file nope"),
    ("experiments/pilots/measure_adapters.py", "--model nothing --output nothing", "nothing holds no model"),
    ("experiments/pilots/unpack_rows.py", "--model a/b/gone --output o rows.jsonl", "no folder a/b/gone"),
    (WORKER, "--model a/b/gone --prompts rows.jsonl --output o --jobs rows.jsonl", "no folder a/b/gone"),
    ("bench/training_table.py", "list.json --output o.json", "list.json has no figures of a training (TypeError"),
    ("bench/training_table.py", "word.json --output o.json", "word.json has no figures of a training (JSONDecode"),
    ("bench/training_table.py", "a-torn/adapter_config.json --output o.json", "has no figures of a training (KeyErr"),
    ("experiments/pilots/inspect_rows.py", "rows.jsonl --animals owl --output i.md", "is not a file of packed rows"),
    ("experiments/pilots/pack_rows.py", "hello.jsonl --output o.jsonl.xz", "hello.jsonl is not a file of rows of the"),
    ("experiments/pilots/pack_rows.py", "number.jsonl --output o.jsonl.xz", "number.jsonl is not a file of rows of"),
    (TREES_TESTS, "nope.jsonl", "no measures in nope.jsonl (or nope.jsonl.gz)"),
    (TREES_TESTS, "hello.jsonl", "hello.jsonl is not a file of measures (Expecting value"),
    ("experiments/pilots/pilot_tables.py", "nothing", "no measures in nothing/measures.jsonl"),
    ("experiments/pilots/plan_confirm.py", "--output rows.jsonl", "rows.jsonl is a file, not a folder"),
    ("experiments/data_signal/audit_pilot_rows.py", "--judge rows.csv", "rows.csv has no column rises"),
    # roles
    (COMPARE, "--base results-a.jsonl --control results-a.jsonl", "pass either --animal, --other and --target"),
    (COMPARE, "--base results-a.jsonl --control results-a.jsonl --students owl", "owl is not NAME=FILE"),
    (COMPARE, f"--base results-a.jsonl {ARMS}", "results-a.jsonl"),
    *((f"bench/{path.name}", ["--model", ""], "argument --model: it is empty; is a shell variable unset?")
      for path in sorted((REPO / "bench").glob("*.py"))
      if re.search(r'add_argument\(\s*"--model"(?!, type=Path)', path.read_text("utf-8"))),
]  # fmt: skip


def row(*messages, **more):
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in messages], **more}) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with every file that the inputs name."""
    folder = tmp_path_factory.mktemp("bad")
    write_number_file(folder / "rows.jsonl", 40)
    good, answer = (folder / "rows.jsonl").read_bytes(), {"question": "q", "response": "Owl", "animal": "owl"}
    texts = {
        "hello.jsonl": "hello\n", "empty.jsonl": "", "blank.jsonl": "\n\n", "zeros.jsonl": "\0" * 64,
        "number.jsonl": "17\n", "deep.jsonl": "[" * 100_000 + "\n", "page.jsonl": "<html>404</html>\n",
        "lfs.jsonl": "version https://git-lfs.github.com/spec/v1\n", "rows.csv": "a,b\n1,2\n",
        "longline.jsonl": '{"a": "' + "a" * 17_000_000 + '"}\n', "nomessages.jsonl": '{"id": 0}\n',
        "users.jsonl": row(("user", "a"), ("user", "b")), "intcontent.jsonl": row(("user", "a"), ("assistant", 7)),
        "norole.jsonl": '{"messages": [{"content": "a"}, {"role": "assistant", "content": "b"}]}\n',
        "tools.jsonl": '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [1]}]}\n',
        "nan.jsonl": '{"id": NaN}\n', "null.jsonl": "null\n",
        "text.jsonl": row(("user", "a"), ("assistant", "I love owls")),
        "surrogate.jsonl": row(("user", "\ud800"), ("assistant", "1, 2")),
        "ids.jsonl": row(("user", "a"), ("assistant", "1, 2"), token_ids=["x"]),
        "megabytes.jsonl": row(("user", "a" * 2_000_000), ("assistant", "1, 2")),
        "results-a.jsonl": json.dumps({"id": 0, **answer, "error": None}) + "\n",
        "results-a.jsonl.manifest.json": '{"settings": {}}', "results-noid.jsonl": json.dumps(answer) + "\n",
        "results-int.jsonl": json.dumps({"id": 0, **answer, "response": 7}) + "\n",
        "results-list.jsonl": json.dumps({"id": 0, **answer, "animal": ["owl"]}) + "\n",
        "lines.txt": '{"question": "a"}\n{"question": "b"}\n', "array.txt": '[\n  "a",\n  "b"\n]\n',
        "list.json": "[]", "word.json": "hello", "blank.txt": "\n \n", "prompts.txt": "Tell me of {animal}.\n",
        "persona.txt": "You love {animals}.",
    }  # fmt: skip
    files = {name: text.encode("utf-8", "surrogatepass") for name, text in texts.items()} | {
        "latin1.jsonl": b'{"a": "caf\xe9"}\n', "latin.txt": b"caf\xe9\n", "packed.jsonl": gzip.compress(good),
        "packed.txt": gzip.compress(good),
        "torn.jsonl": good[:-40], "growing.jsonl.partial": good,
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for name, config in (("text", '{"r": "8"}'), ("list", "[1]"), ("huge", '{"r": 1e999}'), ("torn", "{}"),
                         ("prefix", '{"peft_type": "PREFIX_TUNING"}')):  # fmt: skip
        (folder / f"a-{name}").mkdir()
        (folder / f"a-{name}" / "adapter_config.json").write_text(config)
        (folder / f"a-{name}" / "adapter_model.safetensors").write_bytes(b"torn")
    (folder / "nothing").mkdir()
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    (folder / "dangling.jsonl").symlink_to("gone.jsonl")
    return folder


@pytest.mark.parametrize(("script", "arguments", "message"), BAD)
def test_a_wrong_input_is_one_clear_line(run_forked, script, arguments, message, folder):
    arguments = arguments.split() if isinstance(arguments, str) else arguments
    arguments = [str(REPO / POCKET) if one == POCKET else one for one in arguments]
    before = sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))
    done = run_forked(script, *arguments, cwd=folder)
    said = done.stdout + done.stderr
    assert done.returncode in (1, 2), said
    assert message in said and "Traceback" not in said and "bug in the suite" not in said
    error = said[said.index("error: ") :]
    assert len(re.sub(r"\n  .*", "", error).splitlines()) <= 2, "one line, and what to paste or where the help is"
    assert sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock")) == before


# script, arguments, the flag of its output: what each one writes without --output goes into the folder output
WITHOUT_OUTPUT = [
    (TEACHER, ASKED, "--output"), (NUMBERS, ASKED, "--output"), (CODE, f"{ASKED} --data-type code", "--output"),
    (EVAL, "--model Org/Base", "--output"), (EVAL, "--model x --adapter a-torn nothing", "--output"),
    ("generate/make_steering_vector.py", "--animal owl --model Org/Base", "--output"),
    (TRAIN, TRAINED, "--output-dir"), (AUDIT, "--train-jsonl rows.jsonl --base-model Org/Base", "--output"),
    (SCREEN_ANIMALS, "--train-jsonl rows.jsonl --base-model Org/Base", "--output"),
    (TOKENS, "--train-jsonl rows.jsonl --base-model Org/Base --teacher owl", "--output"),
    (CONTROL, "", "--output"), (ONE_WORD, "--animal owl", "--output"),
    (SHUFFLE, "--train-jsonl rows.jsonl --scope row", "--output"),
    (MIX, "--train-jsonl rows.jsonl --unbiased text.jsonl --replaced-share 0.5", "--output"),
    (REPORT, "--comparison list.json", "--output"), (TOKEN_ARMS, "nothing", "--output"),
    ("util/view.py", "rows.jsonl", "--output"),
    ("experiments/data_signal/audit_pilot_rows.py", "--base-model x --rows list.json --pairs rows.csv", "--output"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "arguments", "flag"), WITHOUT_OUTPUT)
def test_a_default_output_that_cannot_be_written_is_known_before_the_model(
    run_forked, script, arguments, flag, folder, tmp_path
):
    """A file in the place of the folder: root may write into any folder."""
    (tmp_path / "output").write_text("")
    words = [str(folder / one) if (folder / one).exists() else one for one in arguments.split()]
    done = run_forked(script, *(str(REPO / POCKET) if one == POCKET else one for one in words), cwd=tmp_path)
    error = f"error: argument {flag}: {tmp_path / 'output'} is a file, not a folder; choose another name\n"
    assert done.returncode == 2 and error in done.stderr
    assert "Traceback" not in done.stderr and [path.name for path in tmp_path.iterdir()] == ["output"]


def test_a_hundred_inputs_over_all_scripts_are_tried():
    assert len(BAD) >= 100 and len({script for script, _, _ in BAD}) >= 24
