"""The hosts in a made-up WebUI: folders, lists, the borrowed device and its lock."""

from __future__ import annotations

import gc
import importlib
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from lora_trainer.errors import HostError
from lora_trainer.host.base import Folders, HostOptions
from lora_trainer.host.table import HOSTS, detect_host, find_host
from tests.hosts.conftest import until


def never():
    return False


def nothing():
    pass


@pytest.fixture
def host(webui):
    return find_host()


class TestDetection:
    def test_without_a_webui_the_host_is_our_own_page(self):
        assert detect_host() == "standalone"

    @pytest.mark.parametrize("kind", ["a1111", "reforge"])
    def test_a_webui_is_told_by_its_modules(self, enter, kind):
        enter(kind)
        assert detect_host() == find_host().name == kind

    @pytest.mark.parametrize(("version", "expected"), [("2.0.1v1.10.1", "forge"), ("neo", "forge_neo")])
    def test_neo_is_told_from_forge_by_what_it_calls_itself(self, enter, version, expected):
        enter("forge")
        sys.modules["modules_forge.forge_version"].version = version
        assert detect_host() == find_host().name == expected

    def test_every_name_of_the_table_is_a_host_of_that_name(self, enter):
        enter("forge")
        for entry in HOSTS:
            assert entry.load().name == entry.name

    def test_the_title_has_the_version(self, host):
        assert host.title == "AUTOMATIC1111 v0.0.1"


class TestFolders:
    def test_they_are_below_the_webuis_data_folder(self, webui, host):
        assert host.folders() == Folders(webui.folder / "lora_trainer", webui.folder / "models" / "Lora")

    def test_the_flag_goes_before_the_setting(self, webui, host, tmp_path):
        webui.shared.opts.data["lora_trainer_dir"] = str(tmp_path / "by setting")
        assert host.folders().data_dir == tmp_path / "by setting"
        webui.shared.cmd_opts.lora_trainer_dir = str(tmp_path / "by flag")
        assert host.folders().data_dir == tmp_path / "by flag"

    def test_a_relative_setting_starts_at_the_data_folder(self, webui, host):
        webui.shared.opts.data |= {"lora_trainer_dir": "trainer", "lora_trainer_second_lora_dir": " extensions/other/lora "}
        folders = host.folders()
        assert folders.data_dir == webui.folder / "trainer"
        assert folders.second_lora_dir == webui.folder / "extensions" / "other" / "lora"

    def test_settings_are_read_each_time(self, webui, host):
        assert host.options() == HostOptions()
        webui.shared.opts.data |= {
            "lora_trainer_captioner": "blip",
            "lora_trainer_save_steps": 200.0,  # the WebUI keeps numbers as floats
            "lora_trainer_gives_way": False,
        }
        assert host.options() == HostOptions("blip", 200, False)

    def test_the_settings_page_has_our_section_with_those_defaults(self, webui, host):
        pytest.importorskip("gradio")
        from lora_trainer.host.settings import add_settings

        add_settings(["blip", "other"])
        assert host.options() == HostOptions()
        assert {name.startswith("lora_trainer") for name in webui.shared.opts.data_labels} == {True}
        infos = webui.shared.opts.data_labels.values()
        assert {info.section for info in infos} == {("lora_trainer", "LoRA Trainer")}
        assert all(info.label and info.help for info in infos)

    def test_the_loaded_checkpoint_comes_first(self, webui, host):
        webui.add_checkpoints("a.safetensors", "b.safetensors", "c.safetensors")
        webui.shared.opts.data["sd_model_checkpoint"] = "b.safetensors"
        names = [file.name for file in host.checkpoints()]
        assert names == ["b.safetensors", "a.safetensors", "c.safetensors"]  # without the hashes, which come when one is loaded
        assert host.checkpoints()[0].path == webui.folder / "b.safetensors"

    def test_vaes_are_the_webuis(self, webui, host):
        webui.sd_vae.vae_dict["best.vae.pt"] = str(webui.folder / "best.vae.pt")
        assert [(file.name, file.path) for file in host.vaes()] == [("best.vae.pt", webui.folder / "best.vae.pt")]


class TestBorrowing:
    def test_the_models_make_room_and_are_back_afterwards(self, webui, host):
        webui.use_card()
        with host.borrow_device("Training ink"):
            assert not webui.model.is_on_device
            assert webui.is_locked()
            assert webui.shared.state.job == webui.shared.state.textinfo == "Training ink"
        assert webui.model.is_on_device
        assert not webui.is_locked()
        assert webui.shared.state.job == ""

    @pytest.mark.parametrize("error", [ValueError, MemoryError, KeyboardInterrupt, SystemExit])
    def test_however_it_ends(self, webui, host, error):
        webui.use_card()
        with pytest.raises(error), host.borrow_device("Training"):
            raise error
        assert webui.model.is_on_device
        assert not webui.is_locked()

    def test_what_failed_holds_no_memory_when_the_models_come_back(self, webui, host, monkeypatch):
        """An error's traceback holds the variables of all that it went through: gigabytes, when memory ran out."""
        webui.use_card()
        alive = []
        send = webui.sd_models.send_model_to_device
        monkeypatch.setattr(
            webui.sd_models, "send_model_to_device", lambda model: (alive.append(ours() is not None), send(model))
        )

        def fail():
            nonlocal ours
            module = nn.Linear(2, 2)
            module.itself = [module]  # a cycle, which needs the collector
            ours = weakref.ref(module)
            raise RuntimeError("CUDA out of memory")

        ours = None
        with pytest.raises(RuntimeError), host.borrow_device("Training"):
            fail()
        assert alive == [False]
        gc.collect()

    def test_every_loaded_model_makes_room_and_those_that_were_away_stay(self, webui, host):
        webui.use_card()
        second, away = webui.sd_models.Model(), webui.sd_models.Model()
        away.to_empty(device="cpu")
        webui.sd_models.model_data.loaded_sd_models += [second, away]
        with host.borrow_device("Training"):
            assert not webui.model.is_on_device and not second.is_on_device
        assert webui.model.is_on_device and second.is_on_device
        assert not away.is_on_device

    def test_a_model_that_was_replaced_meanwhile_does_not_come_back(self, webui, host):
        webui.use_card()
        old = webui.model
        with host.borrow_device("Training"):
            webui.sd_models.model_data.loaded_sd_models.clear()  # the settings page's buttons ignore the lock
            webui.sd_models.model_data.set_sd_model(webui.sd_models.Model())
        assert not old.is_on_device

    def test_with_medvram_the_webui_moves_its_parts_itself(self, webui, host):
        webui.model.lowvram = True
        with host.borrow_device("Training"):
            pass
        assert webui.sd_models.moves == ["cpu", "device"]

    def test_no_model_is_no_trouble(self, webui, host):
        webui.shared.cmd_opts.skip_load_model_at_start = True
        webui.sd_models.model_data.sd_model = None
        webui.sd_models.model_data.loaded_sd_models.clear()
        with host.borrow_device("Training") as lease:
            lease.show(0, 2)
            lease.show(1, 2)
        assert webui.sd_models.moves == []

    def test_it_waits_for_the_load_at_the_start(self, webui, host):
        """While that load goes on, every new layer of the process is on "meta" and moving does nothing."""
        data = webui.sd_models.model_data
        data.sd_model, data.load_seconds = None, 0.3
        data.loaded_sd_models.clear()
        loading = threading.Thread(target=data.get_sd_model)
        loading.start()
        until(data.lock.locked)
        time.sleep(0.05)
        assert nn.Linear(2, 2).weight.is_meta  # the trap is there
        with host.borrow_device("Training") as lease, lease.building():
            assert not nn.Linear(2, 2).weight.is_meta
        loading.join()

    def test_progress_is_shown_while_the_device_is_ours(self, webui, host):
        webui.use_card()
        with host.borrow_device("Training ink") as lease:
            lease.show(3, 40)
            state = webui.shared.state
            assert (state.job_no, state.job_count, state.textinfo) == (3, 40, "Training ink: 3 of 40")


class TestGivingWay:
    def test_without_room_a_generation_gets_the_device_before_the_job_goes_on(self, webui, host):
        webui.use_card()
        log = webui.log
        with host.borrow_device("Training") as lease:
            lease.show(0, 9)
            lease.show(1, 9)
            assert webui.is_locked() and not lease.is_waited_for()
            thread = webui.generate()
            webui.wait_until_queued()
            assert lease.is_waited_for()
            lease.give_way(lambda: log.append("away"), lambda: log.append("back"), is_paused=never)
            assert log == ["away", "generated", "back"]
            assert not webui.model.is_on_device and webui.is_locked()
            assert webui.shared.state.job == "Training"
        thread.join()

    def test_all_who_wait_are_served_in_order_and_one_who_comes_later_is_not(self, webui, host):
        webui.use_card()
        with host.borrow_device("Training") as lease:
            threads = []
            for number in range(3):
                threads.append(webui.generate(f"picture {number}"))
                webui.wait_until_queued(number + 1)
            lease.give_way(nothing, nothing, is_paused=never)
            assert webui.log == ["picture 0", "picture 1", "picture 2"]
            threads.append(webui.generate("late"))
            webui.wait_until_queued()
            assert len(webui.log) == 3
        for thread in threads:
            thread.join()
        assert webui.log[-1] == "late"

    def test_again_and_again(self, webui, host):
        webui.use_card()
        webui.call_queue.FIFOLock.late_seconds = 0.01
        with host.borrow_device("Training") as lease:
            for number in range(10):
                thread = webui.generate(f"picture {number}")
                webui.wait_until_queued()
                lease.give_way(nothing, nothing, is_paused=never)
                thread.join()
                assert webui.log[-1] == f"picture {number}"

    def test_nobody_waits_so_nothing_moves(self, webui, host):
        webui.use_card()
        with host.borrow_device("Training") as lease:
            moved = list(webui.sd_models.moves)
            lease.give_way(pytest.fail, pytest.fail, is_paused=never)
            assert webui.sd_models.moves == moved

    def test_the_setting_makes_the_picture_wait(self, webui, host):
        webui.use_card()
        webui.shared.opts.data["lora_trainer_gives_way"] = False
        with host.borrow_device("Training") as lease:
            thread = webui.generate()
            webui.wait_until_queued()
            lease.give_way(pytest.fail, pytest.fail, is_paused=never)
            assert webui.log == []
        thread.join()
        assert webui.log == ["generated"]

    @pytest.mark.parametrize("has_room", [True, False])
    def test_while_paused_the_device_is_the_webuis(self, webui, host, has_room):
        if not has_room:
            webui.use_card()
        seen = []

        def is_paused():
            if not webui.log:
                webui.generate().join()  # from this very thread's pause: it would hang if the lock were ours
                seen.append(webui.model.is_on_device)
                return True
            return False

        with host.borrow_device("Training") as lease:
            lease.show(0, 9)
            lease.show(1, 9)
            lease.give_way(lambda: seen.append("away"), lambda: seen.append("back"), is_paused=PausedOnce(is_paused))
            assert seen == ["away", True, "back"]
            assert webui.is_locked() is not has_room

    def test_an_error_on_the_way_back_leaves_the_webui_whole(self, webui, host):
        webui.use_card()

        def fail():
            raise RuntimeError("CUDA out of memory")

        with pytest.raises(RuntimeError), host.borrow_device("Training") as lease:
            lease.give_way(nothing, fail, is_paused=PausedOnce(never))
        assert webui.model.is_on_device and not webui.is_locked()

    def test_with_room_for_both_the_lock_is_held_only_to_build(self, webui, host):
        with host.borrow_device("Training") as lease:
            lease.show(0, 9)
            assert webui.is_locked()  # nothing is known before the first step
            lease.show(1, 9)
            assert not webui.is_locked() and webui.shared.state.job == ""
            webui.generate().join()
            with lease.building(), lease.building():
                assert webui.is_locked()
                thread = webui.generate("after building")
                webui.wait_until_queued()
            thread.join()
            assert not lease.is_waited_for()
            lease.give_way(pytest.fail, pytest.fail, is_paused=never)
        assert webui.log == ["generated", "after building"]
        assert not webui.is_locked()

    def test_without_room_the_lock_is_never_let_go(self, webui, host):
        webui.use_card()
        with host.borrow_device("Training") as lease:
            for step in range(4):
                lease.show(step, 9)
                with lease.building():
                    pass
                assert webui.is_locked()

    def test_after_memory_ran_out_beside_it_the_webuis_model_makes_room_for_good(self, webui, host):
        with host.borrow_device("Training") as lease:
            lease.show(0, 9)
            assert not lease.claim()  # it is ours alone until the first step
            lease.show(1, 9)
            drawing = webui.generate()
            until(lambda: webui.is_locked() or webui.log)
            assert lease.claim()  # after the picture that was begun
            drawing.join()
            assert webui.log == ["generated"] and webui.is_locked()
            assert webui.sd_models.moves == ["cpu", "device", "cpu"]
            lease.show(2, 9)
            assert webui.is_locked() and not lease.claim()
        assert webui.sd_models.moves == ["cpu", "device", "cpu", "device"]


class PausedOnce:
    """Paused when first asked, and for as long as the function says so afterwards."""

    def __init__(self, function):
        self.calls, self.function = 0, function

    def __call__(self):
        self.calls += 1
        return self.calls <= 2 or self.function()


class TestGenerate:
    def test_the_webui_draws_in_its_own_words(self, webui, host):
        picture = host.generate(
            "a cat <lora:ink:0.7>", negative_prompt="dog", width=64, height=48, seed=5, sampler="dpmpp_2m_karras"
        )
        assert picture.size == (64, 48)
        request = webui.processing.requests[-1]
        assert (request.prompt, request.negative_prompt, request.seed) == ("a cat <lora:ink:0.7>", "dog", 5)
        assert (request.sampler_name, request.scheduler) == ("DPM++ 2M", "Karras")
        assert request.do_not_save_samples and request.is_closed
        assert not webui.is_locked() and webui.shared.state.job == ""

    def test_the_webuis_own_samplers_can_be_named(self, webui, host):
        host.generate("a cat", sampler="Heun")
        assert webui.processing.requests[-1].sampler_name == "Heun"

    def test_another_base_is_asked_for_by_its_name_and_the_parameters_come_along(self, webui, host):
        assert host.has_pipeline
        picture = host.generate("a cat", base="b.safetensors [0123456789]")
        assert webui.processing.requests[-1].override_settings == {"sd_model_checkpoint": "b.safetensors [0123456789]"}
        assert picture.info["parameters"].startswith("a cat\nSteps: 20")
        host.generate("a cat")
        assert webui.processing.requests[-1].override_settings == {}

    def test_who_waits_is_served_before_the_next_picture(self, webui, host):
        with webui.call_queue.queue_lock:
            ours = threading.Thread(target=lambda: webui.log.append(host.generate("a cat", width=8, height=8).size))
            ours.start()
            webui.wait_until_queued()
            theirs = webui.generate()
            webui.wait_until_queued(2)
        ours.join()
        theirs.join()
        assert webui.log == ["generated", (8, 8)]

    def test_an_interruption_by_the_user_is_told(self, webui, host, monkeypatch):
        process = webui.processing.process_images

        def interrupted(request):
            webui.shared.state.interrupted = True
            return process(request)

        monkeypatch.setattr(webui.processing, "process_images", interrupted)
        with pytest.raises(HostError, match=r"was interrupted in AUTOMATIC1111 v0\.0\.1"):
            host.generate("a cat")

    def test_a_failure_is_told_and_the_lock_is_free(self, webui, host):
        with pytest.raises(HostError, match=r"AUTOMATIC1111 v0\.0\.1 could not draw the picture: ValueError: too many steps"):
            host.generate("a cat", steps=200)
        assert not webui.is_locked()

    def test_the_job_that_has_the_device_cannot_draw_and_does_not_hang(self, host):
        with host.borrow_device("Training"), pytest.raises(HostError, match="borrowed"):
            host.generate("a cat")


@torch.no_grad()
def generate(networks, layer):
    """What a generation does to a layer before its forward."""
    networks.network_apply_weights(layer)


class TestLoraChanged:
    def test_from_the_page_while_a_job_gives_way_both_go_on(self, webui, host, tmp_path):
        """Rename, Delete and "Use this weight" tell the host from a thread of the page's."""
        webui.use_card()
        told, lock = threading.Event(), webui.call_queue.queue_lock

        def tell():
            host.lora_changed(tmp_path / "ink.safetensors")
            told.set()

        def train():
            with host.borrow_device("Training") as lease:
                until(lambda: lock._pending_threads)
                lease.give_way(nothing, nothing, is_paused=never)

        threads = [threading.Thread(target=each, daemon=True) for each in (train, tell)]
        threads[0].start()
        until(webui.is_locked)
        threads[1].start()
        for thread in threads:
            thread.join(10)
        assert told.is_set() and not threads[0].is_alive() and not webui.is_locked()

    def test_old_weights_are_dropped_and_the_new_file_is_listed(self, webui, host, networks, network):
        ink, other = networks.lora_dir / "ink.safetensors", networks.lora_dir / "other.safetensors"
        layer = webui.model.layer
        layer.network_layer_name, before = "layer", layer.weight.clone()
        webui.model.network_layer_mapping = {"layer": layer}
        networks.networks_in_memory |= {"ink": network(ink, 1.0), "other": network(other, 2.0)}
        networks.loaded_networks.append(networks.networks_in_memory["ink"])
        generate(networks, layer)
        assert not torch.equal(layer.weight, before)
        ink.write_bytes(b"new")
        host.lora_changed(ink)
        assert torch.equal(layer.weight, before)
        assert list(networks.networks_in_memory) == ["other"]
        assert list(networks.available_networks) == ["ink"]
        networks.loaded_networks.append(network(ink, 7.0))  # the next prompt: the same name, the new file
        generate(networks, layer)
        assert torch.allclose(layer.weight, before + 7)

    def test_without_that_extension_nothing_happens(self, host, tmp_path):
        host.lora_changed(tmp_path / "ink.safetensors")

    def test_from_within_the_job_that_has_the_lock(self, webui, host, networks):
        with host.borrow_device("Training"):
            host.lora_changed(networks.lora_dir / "ink.safetensors")
            assert webui.is_locked()


class TestForge:
    @pytest.fixture(params=["forge", "reforge"])
    def webui(self, enter, request):
        return enter(request.param)

    def test_their_memory_manager_makes_room_in_their_main_thread(self, webui, host):
        with host.borrow_device("Training") as lease:
            assert webui.memory.unloaded_in == ["forge-main_0"]
            thread = webui.generate()
            webui.wait_until_queued()
            lease.give_way(nothing, nothing, is_paused=never)
            assert webui.log == ["generated"]
            assert len(webui.memory.unloaded_in) == 2
        thread.join()
        assert not webui.is_locked()

    def test_pictures_are_drawn_in_their_main_thread_and_errors_come_back(self, webui, host):
        assert host.generate("a cat", width=8, height=8).size == (8, 8)
        assert webui.main_thread.threads == ["forge-main_0"]
        with pytest.raises(HostError, match="too many steps"):
            host.generate("a cat", steps=200)

    def test_a_replaced_lora_is_read_and_merged_anew(self, webui, host, tmp_path):
        networks = importlib.import_module("networks")
        emptied = []

        def load_lora_state_dict(path):
            return {}

        load_lora_state_dict.cache_clear = lambda: emptied.append(True)
        networks.load_lora_state_dict = load_lora_state_dict
        webui.model.current_lora_hash = "[['ink.safetensors', 0.7, 0.7]]"
        host.lora_changed(Path(tmp_path, "ink.safetensors"))
        assert emptied == [True]
        assert webui.model.current_lora_hash == ""

    def test_forge_merges_a_file_anew_that_was_replaced_under_its_name(self, enter, tmp_path):
        webui, path = enter("forge"), Path(tmp_path, "ink.safetensors")
        importlib.import_module("networks").load_lora_state_dict = dict
        loaded = webui.model.forge_objects = importlib.import_module("backend.patcher.lora").ForgeObjects()
        loaders = [loaded.unet.lora_loader, loaded.clip.patcher.lora_loader]
        for loader in loaders:
            loader.refresh({(str(path), 0.7): 1.0})
            loader.refresh({(str(path), 0.7): 2.0})
        assert [loader.merged for loader in loaders] == [[1.0], [1.0]]  # the trap is there
        loaded.unet.lora_patches[str(path), 0.7] = 1.0
        find_host().lora_changed(path)
        assert loaded.unet.lora_patches == {}  # else the file stays in use
        for loader in loaders:
            loader.refresh({(str(path), 0.7): 2.0})
        assert [loader.merged for loader in loaders] == [[2.0], [2.0]]


class TestClip:
    def test_without_weights_on_the_disk_there_is_none(self, webui, host):
        assert host.clip() is None

    def test_its_file_is_read_under_the_lock_and_used_without_it(self, webui, host):
        weights = webui.folder / "models" / "CLIP" / "ViT-L-14.pt"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"weights")
        clip = host.clip()
        assert not webui.is_locked()
        assert clip.embed_picture(Image.new("RGB", (7, 3))).shape == (2,)
        assert clip.embed_text("a boat").tolist() == [6, 1]

    def test_a_damaged_file_is_said(self, webui, host):
        weights = webui.folder / "models" / "CLIP" / "ViT-L-14.pt"
        weights.parent.mkdir(parents=True)
        weights.touch()
        with pytest.raises(HostError, match=r"ViT-L-14\.pt.*PytorchStreamReader.*Delete the file"):
            host.clip()
        assert not webui.is_locked()


class TestCaptioner:
    def test_without_weights_on_the_disk_there_is_none(self, webui, host):
        assert not host.has_captioner()
        with pytest.raises(HostError, match=r"BLIP holds no \.pth file"), host.captioner():
            pass

    def test_it_is_loaded_without_clip_and_used_under_the_lock(self, webui, host):
        webui.add_blip()
        assert host.has_captioner()
        with host.captioner() as captioner:
            assert not webui.is_locked()
            assert captioner.describe(Image.new("RGB", (7, 3))) == "7 wide"
            webui.generate().join()
        assert not webui.is_locked() and webui.shared.interrogator.num_loaded == 1

    def test_inside_a_borrowed_device_the_lock_is_ours_already(self, webui, host):
        webui.add_blip()
        with host.borrow_device("Captions") as lease, lease.building(), host.captioner() as captioner:
            assert captioner.describe(Image.new("RGB", (7, 3))) == "7 wide"
        assert not webui.is_locked()

    def test_on_a_card_it_is_half_precision_and_leaves_afterwards(self, webui, host):
        webui.add_blip()
        webui.devices.device_interrogate = torch.device("meta")
        interrogator = webui.shared.interrogator = webui.interrogate.InterrogateModels()
        with host.captioner() as captioner:
            weight = interrogator.blip_model.layer.weight
            assert weight.is_meta and weight.dtype == interrogator.dtype == torch.float16
            captioner.describe(Image.new("RGB", (7, 3)))
            webui.devices.cpu = torch.device("meta")  # numbers do not come back from there
        webui.shared.cmd_opts.no_half = True
        interrogator.blip_model = None
        with host.captioner():
            assert interrogator.dtype == torch.float32

    def test_what_goes_wrong_is_told_and_the_lock_is_free(self, webui, host):
        webui.add_blip()
        webui.shared.interrogator.error = OSError("bert-base-uncased cannot be loaded")
        with pytest.raises(HostError, match=r"own captioner: OSError: bert-base.* Choose blip"), host.captioner():
            pass
        assert not webui.is_locked()

    @pytest.mark.parametrize("kind", ["forge", "reforge"])
    def test_forge_moves_it_by_its_own_manager_in_its_own_thread(self, enter, kind):
        webui = enter(kind)
        webui.add_blip()
        interrogator = webui.shared.interrogator
        interrogator.load_device = interrogator.offload_device = torch.device("cpu")
        interrogator.dtype = torch.float16
        host = find_host()
        with host.captioner() as captioner:
            assert captioner.describe(Image.new("RGB", (7, 3))) == "7 wide"
            assert [patcher.model for patcher in webui.memory.loaded] == [interrogator.blip_model]
        assert set(webui.main_thread.threads) == {"forge-main_0"}

    @pytest.mark.parametrize("has_blip", [True, False])
    def test_it_is_the_default_where_it_is_on_the_disk(self, webui, host, has_blip, tmp_path):
        from lora_trainer.jobs.kinds.caption import read

        if has_blip:
            webui.add_blip()
        assert read({"input_dir": str(tmp_path)}, host).captioner == ("webui" if has_blip else "blip")
        webui.shared.opts.data["lora_trainer_captioner"] = "blip-large"
        assert read({"input_dir": str(tmp_path)}, host).captioner == "blip-large"

    def test_a_run_with_it_and_a_prompt(self, webui, host):
        from lora_trainer.captioning.captioner import CaptionerSettings
        from lora_trainer.captioning.webui import load

        webui.add_blip()
        with load(CaptionerSettings("", prompt="a painting of", host=host)) as captioner:
            assert captioner.caption([Image.new("RGB", (7, 3))]) == ["a painting of 7 wide"]
            captioner.move(torch.device("cpu"))
