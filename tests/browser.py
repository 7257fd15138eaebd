"""A web page in headless Chromium, that of Qt WebEngine, in a process of its own.

The process reads steps as JSON: `{"script": ...}` runs JavaScript and waits for the value,
`{"wait": ...}` until an expression is true, `{"click": place}` presses the mouse and `{"hover":
place}` moves it there, `{"files": [...]}` is what the next file chooser returns, `{"screenshot":
path}` writes a PNG. A place is `[x, y]` in the window, or `[selector, x, y]` in fractions of an
element. The webcam is a fake one. It prints the values of the steps as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TIMEOUT = 60  # seconds, of a step that never ends


def browse(
    url: str | Path,
    steps: list[dict[str, Any]],
    size: tuple[int, int] = (900, 900),
    allowed: str | None = None,
) -> list[Any]:
    """Opens a file or URL and returns the value of each step; errors are those of the browser.

    Messages on its console with the text `allowed` are none.
    """
    address = url.resolve().as_uri() if isinstance(url, Path) else url
    environment = {
        **os.environ,
        "QT_QPA_PLATFORM": "offscreen",
        "QTWEBENGINE_CHROMIUM_FLAGS": "--no-sandbox --disable-gpu "
        "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream",
    }
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps({"url": address, "steps": steps, "size": size, "allowed": allowed}),
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT * (len(steps) + 1),
        check=False,
    )
    # A missing system library is named in the ImportError.
    assert done.returncode == 0, f"the browser failed:\n{done.stderr[-3000:]}"
    return json.loads(done.stdout)


def _run(
    url: str, steps: list[dict[str, Any]], size: tuple[int, int], allowed: str | None
) -> list[Any]:
    from PySide6.QtCore import QEventLoop, QPoint, Qt, QTimer, QUrl
    from PySide6.QtTest import QTest
    from PySide6.QtWebEngineCore import QWebEnginePage
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication

    messages: list[str] = []
    chosen: list[str] = []

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level, message, line, _source):
            is_error = level == QWebEnginePage.JavaScriptConsoleMessageLevel.ErrorMessageLevel
            if is_error and not (allowed and allowed in message):
                messages.append(f"line {line}: {message}")

        def chooseFiles(self, _mode, _old, _types):
            return chosen

    application = QApplication([])
    view = QWebEngineView()
    page = Page(view)
    view.setPage(page)
    page.permissionRequested.connect(lambda permission: permission.grant())
    view.resize(*size)
    view.show()

    def waited(start: Any) -> Any:
        """The value that `start` gives its callback."""
        loop, found = QEventLoop(), []

        def finish(value: Any = None) -> None:
            found.append(value)
            loop.quit()

        QTimer.singleShot(TIMEOUT * 1000, loop.quit)
        start(finish)
        if not found:
            loop.exec()
        if not found:
            raise TimeoutError(f"no result within {TIMEOUT} s; console: {messages}")
        return found[0]

    def pause(milliseconds: int) -> None:
        waited(lambda finish: QTimer.singleShot(milliseconds, finish))

    def evaluate(script: str) -> Any:
        text = waited(lambda finish: page.runJavaScript(f"JSON.stringify([{script}])", finish))
        if not text:
            raise RuntimeError(f"{script} failed; console: {messages}")
        return json.loads(text)[0]

    def position(place: list[Any]) -> QPoint:
        if len(place) == 2:
            return QPoint(*place)
        selector, x, y = place
        element = f"document.querySelector({json.dumps(selector)})"
        left, top, width, height = evaluate(
            f"(() => {{ const box = {element}.getBoundingClientRect();"
            "return [box.left, box.top, box.width, box.height]; })()"
        )
        return QPoint(int(left + x * width), int(top + y * height))

    def load(finish: Any) -> None:
        page.loadFinished.connect(finish)
        page.setUrl(QUrl(url))

    if not waited(load):
        raise RuntimeError(f"{url} was not loaded")
    values = []
    for step in steps:
        value = None
        if "script" in step:
            value = evaluate(step["script"])
        elif "wait" in step:
            for _ in range(TIMEOUT * 20):
                if evaluate(step["wait"]):
                    break
                pause(50)
            else:
                raise TimeoutError(f"never true: {step['wait']}; console: {messages}")
        elif "click" in step:
            target = view.focusProxy() or view
            place = position(step["click"])
            QTest.mouseClick(target, Qt.MouseButton.LeftButton, pos=place)
            pause(200)
        elif "hover" in step:
            # A window that is not on a screen gets no moves of a mouse.
            place = position(step["hover"])
            evaluate(
                f"document.elementFromPoint({place.x()}, {place.y()}).dispatchEvent("
                f"new PointerEvent('pointermove', {{clientX: {place.x()}, clientY: {place.y()}, "
                "bubbles: true}))"
            )
            pause(200)
        elif "files" in step:
            chosen[:] = step["files"]
        elif "screenshot" in step:
            pause(300)  # the window is drawn after the script has run
            assert view.grab().save(step["screenshot"]), step["screenshot"]
        values.append(value)
    if messages:
        raise RuntimeError(f"messages on the console: {messages}")
    del application
    return values


if __name__ == "__main__":
    print(json.dumps(_run(**json.load(sys.stdin))), flush=True)
    os._exit(0)  # Qt WebEngine may crash while the interpreter ends
