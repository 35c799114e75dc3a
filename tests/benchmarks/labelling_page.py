"""The labelling page in real browsers. Not part of make test.

    python tests/benchmarks/labelling_page.py browsers    # keys only and mouse only, 20 tasks each
    python tests/benchmarks/labelling_page.py changes     # undo, skip, change, reload, a server that died
    python tests/benchmarks/labelling_page.py many        # twelve answers by keys, Markdown, a claim that is renewed
    python tests/benchmarks/labelling_page.py pictures --output FOLDER

Needs `pip install playwright` and a Chromium (Debian's package, or another by --chromium). Each step fails with an
assertion, or prints what it counted.
"""

import argparse
import random
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from labelling_server import Client, free_port, make_store, served

from gpt_modules.storage.comparisons import Answer, Desk, Ranking, Source

FLAGS = ("fails to follow", "harmful")


class Plan(NamedTuple):
    """What a scripted labeler will say of a task: by the text of each answer."""

    scores: dict[str, int]
    ranks: dict[str, int]
    flags: dict[str, frozenset[str]]
    note: str


def plan_of(labeler: str, prompt: str, texts: Sequence[str], noted: bool) -> Plan:
    """A function of its arguments: any scores, and a ranking with ties that need not follow them."""
    draw = random.Random(f"{labeler} {prompt}")
    order = sorted(texts)
    draw.shuffle(order)
    groups: list[list[str]] = []
    for text in order:
        if groups and draw.random() < 0.3:
            groups[-1].append(text)
        else:
            groups.append([text])
    ranks: dict[str, int] = {}
    for group in groups:
        ranks |= dict.fromkeys(group, len(ranks) + 1)
    flags = {text: frozenset(flag for flag in FLAGS if draw.random() < 0.15) for text in order}
    note = f"a note on {len(order)} answers" if noted and draw.random() < 0.3 else ""
    return Plan({text: draw.randint(1, 7) for text in order}, ranks, flags, note)


# --- browsers ---


@contextmanager
def browser(chromium: str, failing: tuple[str, ...] = (), **settings: Any) -> Iterator[Any]:
    """A page of a browser of its own; what goes wrong in it fails the run, unless it is `failing` as it should."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = opened.new_context(**settings).new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        yield page
        opened.close()
        wrong = [line for line in wrong if not any(word in line for word in failing)]
        assert not wrong, wrong


def seen_task(page: Any) -> tuple[str, list[str]]:
    """(prompt, answers) as the page shows them."""
    return page.inner_text("#prompt .text"), page.eval_on_selector_all(
        ".card .text", "of => of.map(e => e.textContent)"
    )


def wait_for_other(page: Any, prompt: str) -> None:
    """Until the page shows another task, or none. (The page's policy forbids the evaluation that Playwright's own
    waiting for a function needs.)
    """
    for _ in range(600):
        if page.is_visible("#nothing") or seen_task(page)[0] != prompt:
            return
        time.sleep(0.05)
    raise AssertionError(f"after {prompt!r}: {page.inner_text('body')}")


def by_keys(address: str, chromium: str, labeler: str, tasks: int) -> int:
    """Label by keys alone; the most keys that a ranking without flags and note took."""
    most = 0
    with browser(chromium, viewport={"width": 1440, "height": 900}) as page:
        pressed = 0

        def press(key: str) -> None:
            nonlocal pressed
            page.keyboard.press(key)
            pressed += 1

        page.goto(address)
        page.wait_for_selector("#who:not([hidden])")
        page.keyboard.type(labeler)
        page.keyboard.press("Enter")
        for _ in range(tasks):
            page.wait_for_selector("#task:not([hidden])")
            prompt, texts = seen_task(page)
            plan = plan_of(labeler, prompt, texts, noted=True)
            pressed = 0
            for text in texts:
                press(str(plan.scores[text]))
            rank = 0
            for text in sorted(texts, key=lambda text: plan.ranks[text]):
                if plan.ranks[text] == rank:
                    press("=")
                press("abcdefghi"[texts.index(text)])
                rank = plan.ranks[text]
            most = max(most, pressed + 1)
            for text in texts:
                if plan.flags[text]:
                    flag_by_keys(page, texts.index(text), plan.flags[text])
            if plan.note:
                page.keyboard.press("n")
                page.keyboard.type(plan.note)
                page.keyboard.press("Control+Enter")
            else:
                page.keyboard.press("Enter")
            wait_for_other(page, prompt)
    return most


def flag_by_keys(page: Any, answer: int, flags: frozenset[str]) -> None:
    """To the answer by k and j, to its flags by x, then Tab and Space."""
    for _ in range(9):
        page.keyboard.press("k")
    for _ in range(answer):
        page.keyboard.press("j")
    page.keyboard.press("x")
    form = page.eval_on_selector_all(f".card:nth-child({answer + 1}) .flag input", "of => of.map(e => e.value)")
    places = [form.index(flag) for flag in sorted(flags, key=form.index)]
    for before, place in zip([0, *places], places, strict=False):
        for _ in range(place - before):
            page.keyboard.press("Tab")
        page.keyboard.press("Space")


def by_mouse(address: str, chromium: str, labeler: str, tasks: int) -> None:
    """Label by the mouse alone (the name, which has no other way, is typed)."""
    with browser(chromium, viewport={"width": 1280, "height": 1000}) as page:
        page.goto(address)
        page.fill("#name", labeler)
        click(page, "#who .main")
        for _ in range(tasks):
            page.wait_for_selector("#task:not([hidden])")
            prompt, texts = seen_task(page)
            plan = plan_of(labeler, prompt, texts, noted=False)
            for i, text in enumerate(texts, start=1):
                click(page, f".card:nth-child({i}) .score:nth-child({plan.scores[text]})")
                for flag in plan.flags[text]:
                    click(page, f".card:nth-child({i}) .flag:has(input[value='{flag}'])")
            groups = [[t for t in texts if plan.ranks[t] == rank] for rank in sorted(set(plan.ranks.values()))]
            for group in reversed(groups):
                drag(page, texts.index(group[0]), onto=False)
                for text in group[1:]:
                    drag(page, texts.index(text), onto=True)
            click(page, "#submit")
            wait_for_other(page, prompt)


def click(page: Any, selector: str) -> None:
    """A click at the middle of an element, wherever the mouse has to go."""
    element = page.locator(selector)
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    page.mouse.down()
    page.mouse.up()


def drag(page: Any, answer: int, onto: bool) -> None:
    """An answer to the top of the ranking, or onto what stands there."""
    box = page.locator(f".chip[data-answer='{answer}'] .grip").bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + box["height"] / 2)
    page.mouse.down()
    goal = page.locator(".group").first.bounding_box()
    page.mouse.move(goal["x"] + 60, goal["y"] + (goal["height"] / 2 if onto else 2), steps=6)
    page.mouse.up()


def browsers(path: Path, chromium: str) -> None:
    """Two browsers at once; their votes are the planned ones, exactly."""
    tasks = 20
    make_store(path, tasks)
    with served(path, "--overlap", "1") as (_, address), ThreadPoolExecutor(2) as pool:
        keys = pool.submit(by_keys, address, chromium, "kay", tasks)
        mouse = pool.submit(by_mouse, address, chromium, "moe", tasks)
        most, _ = keys.result(), mouse.result()
    with Desk.open(path, writing=False) as store:
        rankings = list(store.rankings())
        notes = {(of.task, of.labeler): store.vote_of(of.task, of.labeler) for of in rankings}
    assert len(rankings) == 2 * tasks
    for found in rankings:
        vote = notes[found.task, found.labeler]
        assert vote is not None
        check(found, vote.note)
    print(f"2 browsers, {tasks} tasks each: all {len(rankings)} votes as given; at most {most} keys for scores, "
          "ranking and submit")  # fmt: skip


def check(found: Ranking, note: str) -> None:
    """A vote against its plan."""
    texts = [answer.text for answer in found.answers]
    plan = plan_of(found.labeler, found.prompt, texts, noted=found.labeler == "kay")
    assert list(found.scores) == [plan.scores[text] for text in texts]
    assert list(found.ranks) == [plan.ranks[text] for text in texts]
    assert list(found.flags) == [plan.flags[text] for text in texts]
    assert note == plan.note


def changes(path: Path, chromium: str) -> None:
    """What a labeler does besides going on."""
    make_store(path, 6, k=lambda i: 3)
    port = free_port()

    def counting() -> dict[int, list[int | None] | None]:
        """Of each task the scores as they are shown, None: skipped."""
        with Desk.open(path, writing=False) as store:
            votes = {own.task: store.vote_of(own.task, "kay") for own in store.own_votes("kay")}
        return {task: [of.score for of in vote.judgements.values()] or None for task, vote in votes.items() if vote}

    with browser(chromium, failing=("ERR_",)) as page, served(path, port=port) as (process, address):

        def vote(keys: str) -> None:
            prompt = seen_task(page)[0]
            for key in keys:
                page.keyboard.press(key)
            page.keyboard.press("Enter")
            wait_for_other(page, prompt)

        def shown_scores() -> list[str]:
            return page.eval_on_selector_all(".score input:checked", "of => of.map(e => e.value)")

        page.goto(address)
        page.fill("#name", "kay")
        page.keyboard.press("Enter")
        page.wait_for_selector("#task:not([hidden])")
        vote("345")
        second = seen_task(page)[0]
        page.keyboard.press("6")
        page.keyboard.press("u")
        wait_for_other(page, second)
        assert shown_scores() == ["3", "4", "5"]
        assert counting() == {}
        vote("777")
        with Desk.open(path, writing=False) as store:
            (again,) = store.rankings()
        assert again.ranks == (1, 1, 1)  # a ranking that was the scores' follows them when they are corrected
        assert seen_task(page)[0] == second
        assert shown_scores() == ["6"]  # what was begun before the undo
        page.reload()
        page.wait_for_selector("#task:not([hidden])")
        assert shown_scores() == ["6"]
        page.keyboard.press("s")
        wait_for_other(page, second)
        assert counting() == {1: [7, 7, 7], 2: None}
        third = seen_task(page)[0]
        page.keyboard.press("m")
        page.wait_for_selector("#votes[open]")
        page.get_by_role("button", name="Change").nth(1).click()
        wait_for_other(page, third)
        assert shown_scores() == ["7", "7", "7"]
        vote("111")
        assert counting() == {1: [1, 1, 1], 2: None}
        assert seen_task(page)[0] == third
        process.kill()
        process.wait()
        for key in "222":
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#wrong:not([hidden])")
        with served(path, port=port):
            wait_for_other(page, third)
            page.wait_for_selector("#wrong", state="hidden")
            assert counting() == {1: [1, 1, 1], 2: None, 3: [2, 2, 2]}
            for _ in range(3):
                vote("444")
            assert page.is_visible("#nothing")
    print("undo, skip, change, reload and a server that died: every vote as it should be")


def many(path: Path, chromium: str) -> None:
    """More answers than there are letters of their own; a claim lasts as long as its labeler works."""
    make_store(path, 1, k=lambda i: 12)
    with served(path) as (_, address), browser(chromium) as page:
        page.clock.install()
        page.goto(address)
        page.fill("#name", "kay")
        page.keyboard.press("Enter")
        page.wait_for_selector("#task:not([hidden])")
        texts = seen_task(page)[1]
        for works in (True, False, True):
            before = claimed(path)
            if works:
                page.keyboard.press("t")
            page.clock.run_for(61_000 if works else 600_000)
            time.sleep(1)
            assert (claimed(path) > before) == works, works
        page.keyboard.press("t")
        page.wait_for_selector(".text.markdown")
        assert page.locator(".text.markdown").count() == 13
        for _ in texts:
            page.keyboard.press("4")
        order = "bcladefghijk"  # the last letters are commands without Shift
        for letter in order:
            page.keyboard.press(f"Shift+{letter}" if letter > "i" else letter)
        page.keyboard.press("Enter")
        page.wait_for_selector("#nothing:not([hidden])")
    with Desk.open(path, writing=False) as store:
        (found,) = store.rankings()
    ranks = {answer.text: rank for answer, rank in zip(found.answers, found.ranks, strict=True)}
    assert [ranks[text] for text in texts] == [order.index(letter) + 1 for letter in "abcdefghijkl"]
    print("twelve answers ranked by keys, shown as Markdown; the claim was renewed while there was work, and only then")


def claimed(path: Path) -> float:
    """When the one claim ends."""
    with closing(sqlite3.connect(path)) as connection:
        (ends,) = connection.execute("SELECT expires FROM claims").fetchone()
    return float(ends)


# --- pictures ---

MARKDOWN = [
    "# A heading\n\nSome *emphasis*, **weight**, `code` and ~~a slip~~.\n\n1. one\n2. two\n   - a part\n\n> quoted",
    "| film | stars |\n|---|---|\n| Heat | 5 |\n\n```python\nprint('<b>no</b>')\n```\n\nThe end.",
    'A [link](https://example.org/path "title"), an ![image](https://example.org/x.png) and <https://example.org>.',
    "Plain text, nothing else.\nIn two lines.",
]
HOSTILE = [
    "<script>document.title = 'no'</script><img src=x onerror=\"document.title = 'no'\"> plain text",
    "[a link](javascript:document.title='no') and \u202eback to front\u202c, zero\u200bwidth, bell \u0007",
    "A first line.\n\n    An indented one,\twith a tab.\n" + "And it goes on, sentence after sentence. " * 2500,
    "\u05d6\u05d4\u05d5 \u05de\u05e9\u05e4\u05d8 \u05d1\u05e2\u05d1\u05e8\u05d9\u05ea."
    " \u0648\u0647\u0630\u0647 \u062c\u0645\u0644\u0629.",
]  # fmt: skip


def pictures(path: Path, chromium: str, output: Path) -> None:
    """The page at both widths, in light and dark, with a task half done, hostile texts, and the dialogs."""
    make_store(path, 20)
    output.mkdir(parents=True, exist_ok=True)
    sizes = [{"viewport": {"width": 1440, "height": 900}}, {"viewport": {"width": 390, "height": 844}}]
    with served(path, "--overlap", "1") as (_, address):
        port = int(address.rstrip("/").rpartition(":")[2])
        Client(port, "ben").work(9)
        Client(port, "ann").work(8)
        for size in sizes:
            for scheme in ("light", "dark"):
                with browser(chromium, color_scheme=scheme, **size) as page:
                    take(page, address, output, f"{size['viewport']['width']}-{scheme}")
    hostile = path.with_name("hostile.db")
    with Desk.create(hostile) as store:
        answers = [Answer(text, Source("m")) for text in HOSTILE]
        store.add_task(store.round_of("hostile"), "What do hostile answers look like?\n\n<b>As text.</b>", answers)
    with served(hostile) as (_, address):
        for size in sizes:
            with browser(chromium, **size) as page:
                begin_hostile(page, address, output / f"{size['viewport']['width']}-hostile.png")
    as_markdown(path.with_name("markdown.db"), chromium, output, sizes)


def begin_hostile(page: Any, address: str, picture: Path) -> None:
    """Hostile texts, as text and as Markdown."""
    page.goto(address)
    page.fill("#name", "eve")
    page.keyboard.press("Enter")
    page.wait_for_selector("#task:not([hidden])")
    page.screenshot(path=picture, full_page=True)
    page.keyboard.press("t")
    page.wait_for_selector(".text.markdown")
    page.screenshot(path=picture.with_stem(f"{picture.stem}-markdown"), full_page=True)
    check_harmless(page)
    page.keyboard.press("t")
    page.wait_for_selector(".text.markdown", state="detached")
    page.locator(".card:has(.fold) .fold").click()
    check_hostile(page)


def as_markdown(path: Path, chromium: str, output: Path, sizes: Sequence[dict[str, Any]]) -> None:
    """What Markdown is for."""
    with Desk.create(path) as store:
        answers = [Answer(text, Source("m")) for text in MARKDOWN]
        store.add_task(store.round_of("markdown"), "Say something about **films**, with a list.", answers)
    with served(path) as (_, address):
        for size in sizes:
            for scheme in ("light", "dark"):
                with browser(chromium, color_scheme=scheme, **size) as page:
                    page.goto(address)
                    page.fill("#name", "eve")
                    page.keyboard.press("Enter")
                    page.wait_for_selector("#task:not([hidden])")
                    click(page, "#markdown")
                    page.wait_for_selector(".text.markdown")
                    check_harmless(page)
                    page.screenshot(path=output / f"{size['viewport']['width']}-{scheme}-markdown.png", full_page=True)


def check_harmless(page: Any) -> None:
    """Nothing ran, nothing can be loaded or followed."""
    assert page.title() == "Rank the answers"
    assert page.locator("#task .text :is(script, img, a, b, iframe, [href], [src], [style], [onerror])").count() == 0


def check_hostile(page: Any) -> None:
    """All of it is text, and nothing of it ran."""
    check_harmless(page)
    shown = {text.replace("U+202E", "\u202e").replace("U+202C", "\u202c").replace("U+200B", "\u200b")
             .replace("U+0007", "\u0007") for text in seen_task(page)[1]}  # fmt: skip
    assert shown == set(HOSTILE)


def take(page: Any, address: str, output: Path, name: str) -> None:
    """The pictures of one size and scheme."""
    page.goto(address)
    page.wait_for_selector("#who:not([hidden])")
    page.screenshot(path=output / f"{name}-name.png")
    page.keyboard.type("ann")
    page.keyboard.press("Enter")
    page.wait_for_selector("#task:not([hidden])")
    page.wait_for_timeout(300)
    page.screenshot(path=output / f"{name}-begin.png")
    for score in "463625":
        page.keyboard.press(score)
    for key in "d=b":
        page.keyboard.press(key)
    page.locator(".card:nth-child(3) .flag").first.click()
    page.screenshot(path=output / f"{name}-ranked.png")
    page.screenshot(path=output / f"{name}-whole.png", full_page=True)
    page.keyboard.press("?")
    page.screenshot(path=output / f"{name}-keys.png")
    page.keyboard.press("Escape")
    page.keyboard.press("m")
    page.wait_for_selector("#votes[open]")
    page.screenshot(path=output / f"{name}-votes.png")


def main() -> None:
    """One of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("browsers", "changes", "many", "pictures"))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--output", type=Path, default=Path("labelling_pictures"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.db"
        if options.step == "pictures":
            pictures(path, options.chromium, options.output)
        else:
            {"browsers": browsers, "changes": changes, "many": many}[options.step](path, options.chromium)


if __name__ == "__main__":
    main()
