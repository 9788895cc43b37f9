from __future__ import annotations

from pathlib import Path

from miles_lite.weights.folder import copy_tokenizer


def test_what_is_beside_the_weights_is_copied_and_another_template_takes_the_place_of_the_models(
    tmp_path: Path,
) -> None:
    model, out, other = tmp_path / "model", tmp_path / "out", tmp_path / "other.jinja"
    model.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (model / name).write_text(name)
    other.write_text("other")
    for template, text in ((None, "chat_template.jinja"), (str(other), "other")):
        folder = out / text
        folder.mkdir(parents=True)
        copy_tokenizer(model, folder, template=template)
        assert sorted(path.name for path in folder.iterdir()) == ["chat_template.jinja", "tokenizer.json"]
        assert (folder / "chat_template.jinja").read_text() == text
