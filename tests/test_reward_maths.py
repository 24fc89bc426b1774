"""Mathematical equivalence: what is equal, what is refused, and that no formula hangs, kills or runs anything."""

from __future__ import annotations

import importlib.util
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pivot import answers
from pivot.records import Example
from pivot.reward import _contract, _equal, maths
from pivot.reward._contract import Score

PATIENT = 30.0  # seconds: the machine that tests may be busy


def example(truth: str | None) -> Example:
    return Example("item-1", (), "?", answer=truth, answer_kind="maths")


EQUAL = [
    ("1/2", "0.5"),
    ("1/2", r"\frac{1}{2}"),
    ("1/2", r"$\frac{1}{2}$"),
    ("1/2", r"so it is \boxed{\frac{1}{2}}."),
    ("1/2", r"\boxed{\dfrac12}"),
    ("1/2", "The answer is 1/2."),
    ("1/2", "½"),
    ("1/2", r"50\%"),
    (r"$\frac{1}{2}$", "2/4"),
    ("0.5", "1/2"),
    ("x^2+2x+1", "(x+1)^2"),
    ("x^2+2x+1", "(x+1)**2"),
    ("x^2", "x²"),
    (r"2\sqrt{3}", "2*sqrt(3)"),
    (r"2\sqrt{3}", "√12"),
    (r"2\sqrt{3}", r"$\sqrt{12}$ cm"),
    (r"\pi", "π"),
    (r"\pi", "pi"),
    ("x=3", "3"),
    ("3", "x = 3"),
    ("3", "therefore x = 3."),
    ("3", "6/2"),
    ("3", "x = 6/2 = 3"),
    ("1/2", r"2/4 = \frac{1}{2}"),
    ("3", "٣"),
    ("3", "３"),
    ("3", "three"),
    ("3", "It costs $5, and $7. So $x=3$"),
    ("3", r"\[ x = 3 \]"),
    ("3", r"\boxed{\boxed{3}}"),
    ("3", r"first \boxed{4}, no: \boxed{3}"),
    ("5", "5 cm"),
    ("60", r"60^\circ"),
    ("60", "60°"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("1,2", "1 or 2"),
    ("x=1 or x=2", r"\{1,2\}"),
    ("1000", "1,000"),
    ("-3", "−3"),
    ("-3", "minus 3"),
    ("-3", "It is negative three."),
    (r"\text{even}", r"\boxed{\text{even}}"),
]
UNEQUAL = [
    ("1/2", "0.51"),
    ("1/2", "1/3"),
    ("1/2", "2"),
    ("3", "3 or 4"),
    ("3", r"\boxed{3} or \boxed{4}"),
    ("3", "3 and 4"),
    ("3", r"\{3,4\}"),
    ("3", "-3"),
    ("3", "x"),
    ("3", "3x"),
    ("3", "33"),
    ("3", "x > 3"),
    ("3", r"\infty"),
    ("3", "4=3"),
    ("12", "minus 12"),
    ("12", "negative 12"),
    ("12", "12 thousand"),
    ("12", "12 dozen"),
    ("12", "11-12"),
    ("12", "11 to 12"),
    ("12", "between 11 and 12"),
    ("12", "11, maybe 12"),
    ("3", "=".join("3" * 10)),
    ("3", "x=4=3"),
    ("1/2", "1/3=1/2"),
    ("3", r"\boxed{4} \boxed{3}"),
    ("x=3", "3=3"),
    ("x=3", "x=x"),
    ("x^2", "x^3"),
    ("x^2", "True"),
    ("3", ""),
    ("3", "I do not know"),
    ("3", "$$"),
    ("3", r"\boxed{}"),
    ("3", "\\"),
    ("3", "\\undefined{3}{"),
    ("3", "<answer></answer>"),
]


@pytest.mark.parametrize(("truth", "reply"), EQUAL)
def test_equal(truth: str, reply: str) -> None:
    found = maths.reward(reply, example(truth), seconds=PATIENT)
    assert found == 1, getattr(found, "failed", None)


@pytest.mark.parametrize(("truth", "reply"), UNEQUAL)
def test_unequal(truth: str, reply: str) -> None:
    found = maths.reward(reply, example(truth), seconds=PATIENT)
    assert found == 0 and not getattr(found, "failed", None)


def test_space_around_a_reply_does_not_count() -> None:
    for truth, reply in EQUAL + UNEQUAL:
        assert maths.reward(f"\n  {reply} \t\n", example(truth), seconds=PATIENT) == maths.reward(reply, example(truth), seconds=PATIENT), (
            reply
        )


def test_an_answer_that_is_no_formula_is_unjudged() -> None:
    for truth in (None, "", "no idea at all", r"\ldots ??", "1" * 500, "(" * 20 + "1" + ")" * 20):
        found = maths.reward("3.25", example(truth), seconds=PATIENT)
        assert found == 0 and isinstance(found, Score) and found.failed, truth


# ---- nothing is run


PAYLOADS = [
    "__import__('os').system('touch {}')",
    r"\boxed{{__import__('os').system('touch {}')}}",
    "open('{}','w')",
    "exec(\"open('{}','w')\")",
    "eval(compile(\"open('{}','w')\",'','exec'))",
    "().__class__.__base__.__subclasses__()",
    r"$\text{{__import__('os').system('touch {}')}}$",
    "lambda: 0",
    "[x for x in ().__class__.__bases__]",
    "S('x').subs(1, open('{}', 'w'))",
    "sympify(\"open('{}','w')\")",
    "1; import os; os.system('touch {}')",
    "{{{{7*7}}}}",
    "$(touch {})",
    "`touch {}`",
    r"\input{{{}}}",
    r"\write18{{touch {}}}",
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_reply_is_never_run(payload: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    reply = payload.format(mark)
    assert maths.reward(reply, example("x^2+1"), seconds=PATIENT) == 0
    maths._compared("x^2+1", reply[: maths.LONGEST], PATIENT)  # without what reading takes away
    assert not mark.exists()


def test_the_process_compiles_no_text_and_writes_no_file() -> None:
    """Planted: a library in it that evaluates what it is given, as sympy's own parser does."""
    code = """
import sys; sys.path.insert(0, sys.argv[1]); import _equal
check = _equal.checker()
assert check("1/2", "0.5") == {"equal": True}
from sympy import sympify
assert sympify("2+1") == 3
sys.addaudithook(_equal.forbid)
for deed in (lambda: sympify("3+1"), lambda: eval("1"), lambda: open("mark", "w"), lambda: __import__("os").system("true")):
    try: deed()
    except Exception as error: assert "forbidden" in str(error) + str(error.__context__) + str(getattr(error, "base_exc", "")), error
    else: raise SystemExit("it was done")
assert check("x^2", "x^{2}") == {"equal": True} and check(r"2\\sqrt{3}", r"2*\\sqrt{3}") == {"equal": True}
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(Path(_equal.__file__).parent)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# ---- nothing hangs

TOWERS = ["9^{9^{9^{9}}}", "$1000000000!$"]


def test_a_formula_that_never_ends_is_stopped_in_any_thread() -> None:
    """Each from a thread of its own, where math-verify's own limit raises; the next question is answered again."""
    maths.reward("0.25 ", example("1/4"), seconds=PATIENT)  # the process stands
    with ThreadPoolExecutor(2) as threads:
        start = time.monotonic()
        found = list(threads.map(lambda tower: maths.reward(tower, example("3"), seconds=0.3), TOWERS))
        took = time.monotonic() - start
    assert all(one == 0 and isinstance(one, Score) and "longer than 0.3 seconds" in str(one.failed) for one in found)
    assert took < 60  # twice 0.3 and a start between, on a busy machine
    assert maths.reward("2/8", example("1/4"), seconds=PATIENT) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process")
def test_the_process_has_a_limit_of_memory() -> None:
    assert maths.reward("2/46", example("1/23"), seconds=PATIENT) == 1
    assert maths._comparer.process
    for limit, most in ((resource.RLIMIT_AS, _equal.MEMORY), (resource.RLIMIT_CORE, 0)):
        assert resource.prlimit(maths._comparer.process.pid, limit) == (most, most)


def test_a_process_that_gets_no_time_is_waited_for_though_not_for_ever() -> None:
    """On a busy machine a reply must earn what it earns on an idle one."""
    maths.reward("0.125 ", example("1/8"), seconds=PATIENT)
    assert maths._comparer.process
    maths._comparer.process.send_signal(signal.SIGSTOP)
    threading.Timer(1.0, maths._comparer.process.send_signal, [signal.SIGCONT]).start()
    assert maths.reward("3/24", example("1/8"), seconds=0.5) == 1
    maths._comparer.process.send_signal(signal.SIGSTOP)
    found = maths.reward("4/32", example("1/8"), seconds=0.05)
    assert found == 0 and isinstance(found, Score) and "longer than 0.05 seconds" in str(found.failed)
    assert maths.reward("5/40", example("1/8"), seconds=PATIENT) == 1


DEEP = [("(", ")"), ("{", "}"), (r"\frac{", "}{2}"), (r"\sqrt{", "}"), (r"\left(", r"\right)"), ("[", "]"), ("2^{", "}"), ("sqrt(", ")")]
LONG = ["-", "|", "1+", "x^", "!", "$", "1,", "a or ", r"\boxed{", r"\(", r"\text{", "is ", "x = ", "\\", " ", "\n"]


def test_long_and_deep_formulas_cost_nothing() -> None:
    """100,000 characters are refused before anything parses them, and so are a hundred brackets."""
    start = time.process_time()
    for opening, closing in [*DEEP, *((part, "") for part in LONG)]:
        for times in (50, 100_000 // len(opening + closing)):
            if times > 50 or closing:
                found = maths.reward(opening * times + "x" + closing * times, example("3/7"), seconds=PATIENT)
                assert found == 0 and not getattr(found, "failed", None)
    assert time.process_time() - start < 5


def test_a_killed_process_is_replaced() -> None:
    assert maths.reward("3/9", example("1/3"), seconds=PATIENT) == 1
    assert maths._comparer.process
    maths._comparer.process.kill()
    maths._comparer.process.wait()
    found = maths.reward("4/12", example("1/3"), seconds=PATIENT)
    assert isinstance(found, Score) and found.failed == "the comparison ended its process"
    assert maths.reward("5/15", example("1/3"), seconds=PATIENT) == 1


def test_a_process_that_starts_too_late_fails_its_question_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same question is asked anew afterwards: that it could not be asked is no answer to remember."""
    maths._comparer._end()
    with monkeypatch.context() as hasty:
        hasty.setattr(maths, "START", 0.001)
        found = maths.reward("6/57", example("2/19"), seconds=PATIENT)
    assert found == 0 and isinstance(found, Score) and "does not start" in str(found.failed)
    assert maths.reward("6/57", example("2/19"), seconds=PATIENT) == 1


def test_many_threads_share_one_process() -> None:
    maths.reward("2/14", example("1/7"), seconds=PATIENT)
    process = maths._comparer.process
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: maths.reward(f"{n}/14", example("3/7"), seconds=PATIENT), range(3, 9)))
    assert found == [0, 0, 0, 1, 0, 0] and maths._comparer.process is process


def test_a_forked_copy_starts_its_own() -> None:
    """Forked while another thread holds the lock: the copy would wait for ever."""
    maths.reward("2/22", example("1/11"), seconds=PATIENT)
    mine = maths._comparer.process
    assert mine
    with maths._comparer.lock:
        child = os.fork()
        if not child:
            right = False
            try:
                right = maths.reward("3/33", example("1/11"), seconds=PATIENT) == 1
            finally:
                if maths._comparer.process:
                    maths._comparer.process.kill()
                os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert maths.reward("4/44", example("1/11"), seconds=PATIENT) == 1 and maths._comparer.process is mine


def test_what_was_compared_before_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    maths.reward("2/26", example("1/13"), seconds=PATIENT)
    monkeypatch.setattr(maths._comparer, "ask", lambda *_: pytest.fail("asked again"))
    assert maths.reward("2/26", example("1/13"), seconds=PATIENT) == 1
    assert maths.reward("13.0", example("13"), seconds=PATIENT) == 1  # plain numbers need no sympy


def test_without_the_package_a_recipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_contract, "find_spec", lambda name: None if name == "math_verify" else importlib.util.find_spec(name))
    with pytest.raises(ValueError, match=r"needs math-verify.*pip install 'pivot-vision\[rewards\]'"):
        _contract.check("maths")


# ---- reading


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {a_{1}} and \fbox{b}", None),
        (r"\boxed {a_{1}}, so \fbox{b}", "b"),
        (r"\boxed{3}, that is \boxed{ 3 }", "3"),
        (r"\boxed{3", "\\boxed{3"),
        (r"$x^2$ then $x^3$", "x^3"),
        (r"$$x$$", "x"),
        (r"\(y\) or \(z\)", None),
        ("it costs $5 and $6", "6"),
        ("**Answer:** 12.", "12"),
        ("A: 2\nso 3 apples", "3"),
        ("12 square metres", "12"),
        ("x = 5", "x = 5"),
        ("", None),
        ("nothing", None),
    ],
)
def test_the_formula_of_a_reply(reply: str, read: str | None) -> None:
    assert answers.formula(reply) == read


def test_the_process_ends_with_its_parent() -> None:
    """It ends when nobody is at the other end of its line any more, as when its parent was killed."""
    assert maths.reward("2/34", example("1/17"), seconds=PATIENT) == 1
    process, line = maths._comparer.process, maths._comparer.line
    assert process and line
    line.close()
    assert process.wait(timeout=30) == 0
    maths._comparer._end()
