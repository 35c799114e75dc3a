"""The labelling page: people rank answers in a browser.

Served by Starlette and uvicorn, with a page and scripts of our own. Gradio and NiceGUI keep a page's state in the
server, behind a socket, so that a killed server takes it along; they bring a framework of scripts that a strict
Content-Security-Policy refuses, and no list with ties to drag or type. Here each request stands for itself, and keys,
drag and drop, ties and undo are a few hundred lines that one can read. FastAPI is Starlette with schemas, for which the
house has its own reader (`storage.documents`).
"""
