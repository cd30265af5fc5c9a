"""Loading: what is supported loads, everything else says what is wrong."""

import json
import shutil

import pytest
import torch

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.errors import ModelError
from lewis_core.models.loading import load_model, load_processor
from lewis_core.testing import write_tiny_checkpoint

CPU = Runtime(device="cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # in peft


def write_adapter(base, folder, scale=0.5):
    from peft import LoraConfig, get_peft_model

    model, _ = load_model(ModelRef(path=str(base)), CPU)
    config = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    return model


def test_a_folder_loads_ready_to_answer(tiny):
    model, processor = load_model(ModelRef(path=str(tiny), min_pixels=784, max_pixels=1568), CPU)
    assert not model.training
    assert model.dtype == torch.float32
    assert processor.tokenizer.padding_side == "left"
    assert (processor.image_processor.size.shortest_edge, processor.image_processor.size.longest_edge) == (784, 1568)
    half, _ = load_model(ModelRef(path=str(tiny), dtype="bfloat16", attention="eager"), CPU)
    assert half.dtype == torch.bfloat16


def test_pixel_limits_reach_the_image(tiny):
    from PIL import Image

    image = Image.new("RGB", (280, 280))
    small = load_processor(ModelRef(path=str(tiny), min_pixels=784, max_pixels=3136))
    large = load_processor(ModelRef(path=str(tiny), min_pixels=784, max_pixels=78400))
    assert small.image_processor(images=[image])["image_grid_thw"].tolist() == [[1, 4, 4]]  # 56 = 4 patches of 14
    assert large.image_processor(images=[image])["image_grid_thw"].tolist() == [[1, 20, 20]]


def test_an_adapter_is_applied_unmerged(tiny, tmp_path):
    expected = write_adapter(tiny, tmp_path / "adapter")
    model, _ = load_model(ModelRef(path=str(tiny), adapter=tmp_path / "adapter"), CPU)
    base, _ = load_model(ModelRef(path=str(tiny)), CPU)
    ids = torch.tensor([[10, 20, 30]])
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        assert torch.equal(adapted, expected(input_ids=ids).logits)
        assert (adapted - base(input_ids=ids).logits).abs().max() > 0.01
    assert any("lora_A" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("options", [{"hidden_size": 96}, {"layers": 1}, {"layers": 3}])
def test_an_adapter_of_another_base_is_refused(tiny, tmp_path, options):
    other = write_tiny_checkpoint(tmp_path / "other", **options)
    write_adapter(other, tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"adapter .* does not fit the base model"):
        load_model(ModelRef(path=str(tiny), adapter=tmp_path / "adapter"), CPU)


def test_a_missing_adapter_is_named(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"nothing is not a LoRA adapter: it has no adapter_config.json"):
        load_model(ModelRef(path=str(tiny), adapter=tmp_path / "nothing"), CPU)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        pytest.param(["config.json"], "it has no config.json", id="no-config"),
        pytest.param(["model.safetensors"], "has no weights", id="no-weights"),
        pytest.param(["processor_config.json"], "has no image processor", id="no-processor"),
        pytest.param(["tokenizer.json", "tokenizer_config.json"], "has no tokenizer", id="no-tokenizer"),
        pytest.param(["chat_template.jinja"], "has no chat template", id="no-template"),
    ],
)
def test_missing_files_are_named(copy, files, says):
    for name in files:
        (copy / name).unlink()
    with pytest.raises(ModelError, match=says):
        load_model(ModelRef(path=str(copy)), CPU)


def test_pickled_weights_are_not_read(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin is not read"):
        load_model(ModelRef(path=str(copy)), CPU)


def test_damaged_weights_are_an_error(copy):
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ModelError, match=r"weights of .* cannot be loaded"):
        load_model(ModelRef(path=str(copy)), CPU)


def test_weights_of_another_shape_are_an_error(copy, tmp_path):
    other = write_tiny_checkpoint(tmp_path / "deeper", layers=3)
    shutil.copy(other / "config.json", copy / "config.json")
    with pytest.raises(ModelError, match=r"weights of .* do not fit its config.json"):
        load_model(ModelRef(path=str(copy)), CPU)


def test_an_unsupported_architecture_is_refused_by_name(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))
    with pytest.raises(ModelError, match=r"'llava'; supported are Qwen2-VL"):
        load_model(ModelRef(path=str(copy)), CPU)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        pytest.param("/no/such/folder", "there is no model folder /no/such/folder", id="folder"),
        pytest.param("Qwen/Qwen2-VL-7B-Instruct", "Without a connection, download the model", id="hub-id-offline"),
        pytest.param("pocket:nothing", "no embedded checkpoint 'pocket:nothing'", id="pocket"),
    ],
)
def test_models_that_are_not_there(path, says):
    with pytest.raises(ModelError, match=says):
        load_model(ModelRef(path=path), CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tiny):
    with pytest.raises(ModelError, match="finds no GPU"):
        load_model(ModelRef(path=str(tiny)), Runtime(device="cuda"))


@pytest.mark.parametrize(
    ("options", "language", "vision"),
    [
        pytest.param({}, "shared_prefix", "sdpa", id="fast"),
        pytest.param({"attention": "eager"}, "eager", "eager", id="dense-masks"),
        pytest.param({"engine": "plain"}, "sdpa", "sdpa", id="plain"),
    ],
)
def test_the_engine_decides_how_the_language_model_attends(tiny, options, language, vision):
    model, _ = load_model(ModelRef(path=str(tiny), **options), Runtime(device="cpu"))
    assert model.model.language_model.config._attn_implementation == language
    assert model.model.visual.config._attn_implementation == vision
