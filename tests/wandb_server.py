"""A server on loopback that speaks with the real W&B client, and remembers.

It answers what an online run, `wandb sync` and a dashboard ask, from what they have
sent it before. It judges nothing: tests look at what it holds.
"""

import contextlib
import gzip
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY, PROJECT = "lab", "vlmrm_exp"
TIME = "2026-01-31T12:00:00Z"
LAST_PAGE = {"endCursor": None, "hasNextPage": False, "__typename": "PageInfo"}


def edges(nodes: list) -> dict[str, Any]:
    """A list as GraphQL has it."""
    listed = [{"node": node, "cursor": None} for node in nodes]
    return {"edges": listed, "pageInfo": LAST_PAGE, "totalCount": len(nodes)}


class WandbServer:
    """What was sent, by kind."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Names of GraphQL operations, with their variables."""
        self.runs: dict[str, dict[str, Any]] = {}
        """By their names: the variables of upsertBucket."""
        self.history: dict[str, list[dict[str, Any]]] = {}
        """Rows, by the runs' names."""
        self.summaries: dict[str, dict[str, Any]] = {}
        self.views: dict[str, dict[str, Any]] = {}
        """Workspaces and reports, by their ids."""
        self.artifacts: dict[str, dict[str, Any]] = {}
        """By their ids."""
        self.used: list[tuple[str, str]] = []
        """Artifacts that are inputs: names of run and artifact."""
        self.lets_in = True
        """Whether the key is one of somebody's."""
        self.unknown: list[str] = []
        """Operations that have no answer here."""

    def answer(self, query: str, variables: dict[str, Any]) -> Any:
        """The data of a GraphQL answer."""
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        name = found.group(1) if found else "Anonymous"
        self.asked.append((name, variables))
        if method := getattr(self, f"_{name.lower()}", None):
            return method(**variables)
        self.unknown.append(name)
        print("?? ", query, variables, flush=True)
        return {}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        """Rows of a run, which its client streams."""
        for name, part in sent.get("files", {}).items():
            rows = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                held = self.history.setdefault(run, [])
                held[part["offset"] :] = rows
            elif name == "wandb-summary.json":
                self.summaries[run] = rows[-1]

    def _viewer(self, **_: Any) -> Any:
        if not self.lets_in:
            return {"viewer": None}
        who = {"id": "me", "entity": ENTITY, "username": "me", "email": "me@lab"}
        return {"viewer": {**who, "flags": "{}", "teams": edges([{"name": ENTITY}])}}

    _getdefaultentity = _viewer

    def _upsertbucket(self, id: str | None = None, **sent: Any) -> Any:
        name = sent.get("name") or id
        assert name
        said = {key: value for key, value in sent.items() if value is not None}
        self.runs[name] = self.runs.get(name, {}) | said
        if summary := said.get("summaryMetrics"):
            self.summaries[name] = json.loads(summary)
        project = {"id": "p", "name": PROJECT, "entity": {"id": "e", "name": ENTITY}}
        bucket = {"id": name, "name": name, "project": project, "config": "{}"}
        return {"upsertBucket": {"bucket": bucket, "inserted": id is None}}

    def _runresumestatus(self, name: str, **_: Any) -> Any:
        """How far a run has come that is gone on with."""
        if name not in self.runs:
            return {"model": {"id": "p", "name": PROJECT, "bucket": None}}
        rows = self.history.get(name, [])
        bucket = {
            **{"id": name, "name": name, "displayName": name, "tags": []},
            **{"config": self.runs[name].get("config", "{}"), "wandbConfig": "{}"},
            "summaryMetrics": json.dumps(self.summaries.get(name, {})),
            **{"logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0},
            "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            "eventsTail": "[]",
        }
        return {"model": {"id": "p", "name": PROJECT, "bucket": bucket}}

    def _createrunfiles(self, run: str, files: list[str], **_: Any) -> Any:
        listed = [
            {"name": name, "uploadUrl": f"{self.url}/put/{run}/{name}"}
            for name in files
        ]
        made = {"runID": run, "uploadHeaders": [], "files": listed}
        return {"createRunFiles": made}

    def _organizationcoreweaveorganizationid(self, **_: Any) -> Any:
        return {"entity": None}

    def _artifacttype(self, **_: Any) -> Any:
        return {"project": None}

    def _serverfeaturesquery(self, **_: Any) -> Any:
        return {"serverInfo": {"features": []}}

    def _createartifact(self, input: dict[str, Any]) -> Any:
        id = f"artifact{len(self.artifacts)}"
        self.artifacts[id] = input
        # As if its files were there already, so none is uploaded.
        made = {"id": id, "state": "COMMITTED"}
        sequence = {"latestArtifact": {"id": id}}
        return {"createArtifact": {"artifact": {**made, "artifactSequence": sequence}}}

    def _useartifact(self, input: dict[str, Any]) -> Any:
        self.used.append((input["runName"], input["artifactID"]))
        return {"useArtifact": {"artifact": {"id": input["artifactID"]}}}

    def _runs(self, project: str, **_: Any) -> Any:
        if project != PROJECT:
            return {"project": None}
        nodes = [
            {
                "id": name,
                "name": name,
                "displayName": run["displayName"],
                "projectId": 1,
                "state": "finished",
                "config": run["config"],
                "summaryMetrics": json.dumps(self.summaries.get(name, {})),
                "tags": run.get("tags", []),
                "group": run.get("groupName"),
                "jobType": run.get("jobType"),
                "createdAt": TIME,
                "heartbeatAt": TIME,
                "systemMetrics": "{}",
                "user": {"name": "me", "username": "me"},
                "historyKeys": None,
            }
            for name, run in self.runs.items()
        ]
        return {"project": {"internalId": 1, "runCount": len(nodes), "readOnly": False,
                            "runs": edges(nodes)}}  # fmt: skip

    def _getprojects(self, entity: str, **_: Any) -> Any:
        project = {"id": "p", "name": PROJECT, "entityName": entity, "createdAt": TIME}
        rest = {"isBenchmark": False, "user": None, "__typename": "Project"}
        return {"models": edges([project | rest])}

    def _views(self, type: str, **_: Any) -> Any:
        nodes = [view for view in self.views.values() if view["type"] == type]
        return {"project": {"allViews": edges(nodes)}}

    def _upsertview2(self, id: str | None = None, **sent: Any) -> Any:
        inserted = id is None
        id = id or f"view{len(self.views)}"
        self.views[id] = {"id": id, **sent}
        project = {"id": "p", "name": PROJECT, "entityName": ENTITY}
        view = {**self.views[id], "project": project, "updatedAt": TIME}
        return {"upsertView": {"view": view, "inserted": inserted}}

    _upsertview = _upsertview2


@contextlib.contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Serve on a free port of loopback, until the block ends."""
    held = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            answer: Any = {}
            if self.path == "/graphql":
                asked = json.loads(body)
                variables = asked.get("variables") or {}
                answer = {"data": held.answer(asked["query"], variables)}
            elif self.path.endswith("/file_stream"):
                held.stream(self.path.split("/")[-2], json.loads(body))
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # a client that ends hangs up; wrong answers are the client's matter

    server = Server(("127.0.0.1", 0), Handler)
    held.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield held
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
