"""Targets: modules that turn a training step into files for one runtime. Provisional until protocol 3 closes.

A target is a module with a function `files(spec, batch)` that returns the members of a bundle, name to bytes, for the
runtimes that open them. It is found by an entry point of group `seedmask.targets`, ours like anybody's:

    # pyproject.toml of a package of your own
    [project.entry-points."seedmask.targets"]
    text = "my_targets.text"

    # my_targets/text.py
    from seedmask.spec import ModelSpec

    def files(spec: ModelSpec, batch: int) -> dict[str, bytes]:
        lines = [f"{tensor.name} {tensor.shape}" for tensor in spec.tensors]
        return {"text/tensors.txt": "\\n".join([f"batch {batch}", *lines]).encode()}

After `pip install`, `seedmask export ... --runtimes onnx,text` and `export_bundle(..., runtimes=("onnx", "text"))` put
its members into the bundle. A member's name is the target's name, a slash, and a file name in lower case. The same spec
and batch give the same bytes. The module may import what it needs at its top, since it is loaded only when its graphs
are asked for; a package that is missing there becomes a `seedmask.errors.MissingPackageError`.
"""
