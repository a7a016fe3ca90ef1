"""The routes through a real HTTP stack, in whatever FastAPI and pydantic are installed."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

fastapi = pytest.importorskip("fastapi")
pytest.importorskip("multipart")

from fastapi import Depends, FastAPI, HTTPException  # noqa: E402
from fastapi.security import HTTPBasic, HTTPBasicCredentials  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from lora_trainer.api.routes import PREFIX, add_routes  # noqa: E402
from lora_trainer.config.schema import field_infos  # noqa: E402
from lora_trainer.dataset.library import DatasetLibrary  # noqa: E402
from lora_trainer.host.base import ModelFile  # noqa: E402
from lora_trainer.jobs import JobQueue  # noqa: E402
from tests.jobs.conftest import scripted_kind, wait_for, wait_status  # noqa: E402, F401
from tests.jobs.host import FolderHost  # noqa: E402
from tests.jobs.scripted import words  # noqa: E402
from tests.training.conftest import pictures, toy_family, toy_values  # noqa: E402, F401 - fixtures

pytestmark = pytest.mark.hosts


@dataclasses.dataclass(frozen=True)
class Services:
    host: FolderHost
    queue: JobQueue
    library: DatasetLibrary


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    host = FolderHost(tmp_path, models=[ModelFile("v1-5 [abc]", tmp_path / "v1-5.safetensors")])
    queue = JobQueue(host)
    yield Services(host, queue, DatasetLibrary(host.folders().datasets))
    queue.close()


@pytest.fixture
def app(services) -> FastAPI:
    app = FastAPI()
    add_routes(app, services, None)
    return app


class Client:
    """Asks and checks the form of the answer."""

    def __init__(self, app: FastAPI, **options) -> None:
        self.http = TestClient(app, raise_server_exceptions=False, **options)

    def get(self, path: str, status: int = 200, **options):
        return self._read(self.http.get(PREFIX + path, **options), status)

    def post(self, path: str, body=None, status: int = 200, **options):
        if body is not None:
            options["json"] = body
        return self._read(self.http.post(PREFIX + path, **options), status)

    def _read(self, response, status: int):
        assert response.status_code == status, response.text
        answer = response.json()
        assert ("errors" in answer) == (status >= 400)
        for problem in answer.get("errors", []):
            assert set(problem) == {"field", "message", "severity", "hint"}
        return answer


@pytest.fixture
def client(app) -> Client:
    return Client(app)


def png(number: int = 0) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (80, 70), (number, 0, 0)).save(data, "PNG")
    return data.getvalue()


def fields(answer) -> list[str]:
    return [problem["field"] for problem in answer["errors"]]


class TestDatasets:
    def test_from_nothing_to_captioned_pictures(self, client, services):
        assert client.get("/datasets") == {"datasets": []}
        created = client.post("/datasets", {"name": "ink"}, status=201)
        assert created["path"] == str(services.library.root / "ink")
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("b.png", png(1))
        files = [("files", ("a.png", png())), ("files", ("a.txt", b"a cat")), ("files", ("b.zip", packed.getvalue()))]
        files.append(("files", ("bad.png", b"<svg/>")))
        results = client.post("/datasets/ink/files", files=files)["results"]
        assert [(result["file_name"], result["status"]) for result in results] == [
            ("a.png", "added"),
            ("a.txt", "added"),
            ("b.zip/b.png", "added"),
            ("bad.png", "refused"),
        ]
        pictures = client.get("/datasets/ink/pictures")["pictures"]  # noqa: F811
        assert pictures[0] == {"name": "a.png", "width": 80, "height": 70, "caption": "a cat", "repeats": 1, "error": ""}
        assert len(pictures) == 2

    def test_three_hundred_files_in_one_request(self, client):
        client.post("/datasets", {"name": "ink"}, status=201)
        files = [("files", (f"{number}.txt", f"caption {number}".encode())) for number in range(300)]
        results = client.post("/datasets/ink/files", files=files)["results"]
        assert {result["status"] for result in results} == {"added"}
        assert len(results) == 300

    def test_remove_and_restore(self, client):
        client.post("/datasets", {"name": "ink"}, status=201)
        client.post("/datasets/ink/files", files=[("files", ("a.png", png()))])
        assert client.post("/datasets/ink/remove", {"pictures": ["a.png"]}) == {"removed": ["a.png"]}
        assert client.get("/datasets/ink/pictures")["pictures"] == []
        assert client.post("/datasets/ink/restore", {"pictures": ["a.png"]}) == {"restored": ["a.png"]}
        answer = client.post("/datasets/ink/remove", {"pictures": ["../ink/a.png"]}, status=409)
        assert "has no picture" in answer["errors"][0]["message"]

    @pytest.mark.parametrize("name", ["..", "../x", "/etc", "a/b", "CON", "a\0", ".hidden", "C:", ""])
    def test_no_name_leads_out(self, client, tmp_path, name):
        client.post("/datasets", {"name": name}, status=409)
        assert not (tmp_path / "data" / "datasets").exists()

    @pytest.mark.parametrize("path", ["%2e%2e", "..%2f..%2fetc", "%2fetc", "x"])
    def test_no_address_leads_out(self, client, path):
        for url in (f"/datasets/{path}/pictures",):
            assert client.http.get(PREFIX + url).status_code == 404
        answer = client.http.post(f"{PREFIX}/datasets/{path}/files", files=[("files", ("a.png", png()))])
        assert answer.status_code == 404

    @pytest.mark.parametrize("name", ["../a.png", "/tmp/a.png", "..\\a.png", "con.png"])
    def test_no_file_name_leads_out(self, client, tmp_path, name):
        client.post("/datasets", {"name": "ink"}, status=201)
        results = client.post("/datasets/ink/files", files=[("files", (name, png()))])["results"]
        assert [result["status"] for result in results] == ["refused"]
        assert list(tmp_path.rglob("*.png")) == []


class TestJobs:
    def test_a_job_from_submission_to_its_events(self, client, services):
        id = client.post("/jobs", {"kind": "scripted", "settings": {"a": 1}, "title": "ink"}, status=201)["id"]
        for loss in (0.5, 0.25):
            words().put(loss)
        wait_for(services.queue, id, lambda view: view.step == 2)
        job = client.get(f"/jobs/{id}")
        assert (job["title"], job["status"], job["step"], job["total_steps"]) == ("ink", "running", 2, 10)
        assert [job["id"] for job in client.get("/jobs")["jobs"]] == [id]
        answer = client.get(f"/jobs/{id}/events", params={"after": 2})
        assert [event["data"]["loss"] for event in answer["events"]] == [0.25]
        assert answer["next"] == 3
        assert client.get(f"/jobs/{id}/events", params={"after": 3}) == {"events": [], "next": 3}
        assert client.get(f"/jobs/{id}/settings") == {"settings": {"a": 1}}
        assert "begins" in client.get(f"/jobs/{id}/log")["log"]
        assert client.post(f"/jobs/{id}/commands", {"command": "pause"})["status"] == "paused"
        client.post(f"/jobs/{id}/commands", {"command": "stop"})
        wait_status(services.queue, id, "stopped")

    def test_without_start_it_waits(self, client):
        id = client.post("/jobs", {"kind": "scripted", "settings": {}, "start": False}, status=201)["id"]
        assert client.get(f"/jobs/{id}")["status"] == "queued"

    def test_commands_that_do_not_fit(self, client):
        id = client.post("/jobs", {"kind": "scripted", "settings": {}, "start": False}, status=201)["id"]
        answer = client.post(f"/jobs/{id}/commands", {"command": "pause"}, status=409)
        assert "Allowed: continue, cancel, up, down" in answer["errors"][0]["message"]

    def test_unknown_jobs_and_kinds(self, client):
        for path in ("", "/events", "/settings", "/log"):
            client.get(f"/jobs/20260101-000000-abcdef{path}", status=404)
        client.post("/jobs/x/commands", {"command": "stop"}, status=404)
        client.post("/jobs", {"kind": "trian", "settings": {}}, status=409)

    def test_every_problem_of_the_settings_comes_back(self, client):
        answer = client.post("/jobs", {"kind": "train", "settings": {"seed": "x", "typo": 1}}, status=422)
        assert set(fields(answer)) == {"seed", "typo", "train_data_dir", "base_model"}

    @pytest.mark.parametrize("field", ["output_dir", "lora_dir", "cache_dir"])
    def test_nothing_is_written_outside(self, client, field):
        settings = {"train_data_dir": "x", "base_model": "y", field: "/etc/cron.d"}
        answer = client.post("/jobs", {"kind": "train", "settings": settings}, status=422)
        assert fields(answer) == [field]

    def test_a_real_training_by_preset_and_named_set(self, client, services, toy_values, pictures):  # noqa: F811
        client.post("/datasets", {"name": "ink"}, status=201)
        files = [("files", (path.name, path.read_bytes())) for path in pictures.iterdir()]
        client.post("/datasets/ink/files", files=files)
        left_out = ("train_data_dir", "output_dir", "cache_dir")
        settings = {name: value for name, value in toy_values.items() if name not in left_out} | {"epochs": 1}
        body = {"kind": "train", "dataset": "ink", "preset": "sd1-style", "settings": settings, "title": "ink"}
        checked = client.post("/jobs/check", body)
        assert (checked["family"], checked["num_pictures"], checked["total_steps"]) == ("toy", 6, 4)
        id = client.post("/jobs", body, status=201)["id"]
        view = wait_status(services.queue, id, "finished", "failed")
        assert view.status == "finished", services.queue.log_tail(id)
        assert client.get(f"/jobs/{id}")["result"] == str(services.host.folders().lora_dir / "ink.safetensors")

    def test_pictures_and_base_are_judged_before_it_is_queued(self, client, tmp_path):
        client.post("/datasets", {"name": "ink"}, status=201)
        (tmp_path / "base.safetensors").write_bytes(b"no model")
        settings = {"base_model": str(tmp_path / "base.safetensors")}
        body = {"kind": "train", "dataset": "ink", "settings": settings}
        answer = client.post("/jobs", body, status=422)
        assert {"train_data_dir", "base_model"} <= set(fields(answer))
        assert {problem["field"] for problem in client.post("/jobs/check", body)["problems"]} >= {"train_data_dir", "base_model"}
        assert client.get("/jobs") == {"jobs": []}


class TestBodies:
    @pytest.mark.parametrize("body", [[], "text", 3, True])
    @pytest.mark.parametrize("path", ["/datasets", "/jobs", "/jobs/check", "/datasets/x/remove"])
    def test_what_is_no_object(self, client, path, body):
        client.post("/datasets", {"name": "x"}, status=201)
        client.post(path, body, status=422)

    @pytest.mark.parametrize(
        ("path", "body", "field"),
        [
            ("/datasets", {}, "name"),
            ("/datasets", {"name": 3}, "name"),
            ("/datasets", {"name": "a", "nmae": "b"}, "nmae"),
            ("/jobs", {"settings": {}}, "kind"),
            ("/jobs", {"kind": "train", "settings": []}, "settings"),
            ("/jobs", {"kind": "train", "settings": {}, "start": "yes"}, "start"),
            ("/jobs", {"kind": "train", "settings": {}, "preset": "sd1-styl"}, "preset"),
            ("/jobs", {"kind": "train", "settings": {}, "title": 4}, "title"),
            ("/datasets/x/remove", {"pictures": "a.png"}, "pictures"),
            ("/datasets/x/remove", {"pictures": [1]}, "pictures"),
        ],
    )
    def test_what_is_wrong_is_named(self, client, path, body, field):
        client.post("/datasets", {"name": "x"}, status=201)
        assert fields(client.post(path, body, status=422)) == [field]

    def test_broken_json(self, client):
        client.post("/jobs", status=422, content=b'{"kind": ', headers={"content-type": "application/json"})

    def test_a_wrong_query(self, client):
        assert fields(client.get("/jobs/x/events", params={"after": "x"}, status=422)) == ["after"]
        client.get("/jobs/x/events", params={"after": -1}, status=422)

    def test_files_are_missing(self, client):
        client.post("/datasets", {"name": "ink"}, status=201)
        client.post("/datasets/ink/files", {"files": []}, status=422)

    def test_what_was_not_foreseen_tells_nothing_of_the_inside(self, client, services, monkeypatch):
        monkeypatch.setattr(services.queue, "list", lambda: 1 / 0)
        answer = client.get("/jobs", status=500)
        assert "division" not in json.dumps(answer)


class TestForeignPages:
    """What a browser sends for any page without asking: forms and plain text."""

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
    def test_only_json_is_taken(self, client, services, kind):
        body = json.dumps({"name": "evil"}).encode()
        client.post("/datasets", status=415, content=body, headers={"content-type": kind})
        assert services.library.names() == []

    def test_no_files_from_another_site(self, client):
        client.post("/datasets", {"name": "ink"}, status=201)
        files = [("files", ("a.png", png()))]
        client.post("/datasets/ink/files", status=403, files=files, headers={"sec-fetch-site": "cross-site"})
        client.post("/datasets/ink/files", files=files, headers={"sec-fetch-site": "same-origin"})


class TestLogin:
    @pytest.fixture
    def guarded(self, services) -> FastAPI:
        def login(credentials: HTTPBasicCredentials = Depends(HTTPBasic())) -> bool:
            if (credentials.username, credentials.password) != ("user", "secret"):
                raise HTTPException(status_code=401, detail="Incorrect username or password")
            return True

        app = FastAPI()
        add_routes(app, services, login)
        return app

    def test_every_route_is_behind_it(self, guarded):
        client = TestClient(guarded)
        asked = 0
        for path, operations in client.get("/openapi.json").json()["paths"].items():
            for method in operations:
                url = path.replace("{name}", "x").replace("{id}", "x")
                for options in ({}, {"auth": ("user", "wrong")}):
                    response = client.request(method, url, **({"json": {}} if method == "post" else {}), **options)
                    assert response.status_code == 401, (method, path)
                    asked += 1
        assert asked >= 2 * 15

    def test_who_may_passes(self, guarded):
        assert TestClient(guarded).get(f"{PREFIX}/jobs", auth=("user", "secret")).status_code == 200


class TestChoices:
    def test_options(self, client, tmp_path):
        options = client.get("/options")
        assert options["host"] == "folder 1.0"
        assert options["checkpoints"] == [{"name": "v1-5 [abc]", "path": str(tmp_path / "v1-5.safetensors")}]
        assert "sd1-style" in [preset["name"] for preset in options["presets"]]
        assert "blip" in [captioner["name"] for captioner in options["captioners"]]
        assert {"train", "caption"} <= {job["name"] for job in options["jobs"]}
        assert "adamw" in [optimizer["name"] for optimizer in options["optimizers"]]

    def test_schema_has_every_setting(self, client):
        settings = client.get("/schema")["settings"]
        assert [setting["name"] for setting in settings] == list(field_infos())
        by_name = {setting["name"]: setting for setting in settings}
        assert by_name["base_model"]["required"]
        assert (by_name["lora_rank"]["default"], by_name["lora_rank"]["kind"]) == (16, "int")

    def test_all_are_in_the_openapi_page_even_when_it_was_made_before(self, services):
        app = FastAPI()
        assert app.openapi()["paths"] == {}
        add_routes(app, services, None)
        paths = app.openapi()["paths"]
        assert all(path.startswith(PREFIX) for path in paths)
        assert len(paths) == 14
        assert all(operation["summary"] for operations in paths.values() for operation in operations.values())
