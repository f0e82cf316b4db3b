"""Bundle: the zip file that `seedmask export` writes and a device opens.  PROTOCOL 9.

`manifest.json` lists every other member with its size and SHA-256; `spec.json` is the canonical ModelSpec. Opening a
bundle reads and checks it; nothing is extracted to a disk or executed. Members are not compressed, so a bundle cannot
grow when it is read. The same model always gives the same bytes: order, dates and flags are fixed. A file that
`to_bytes` could not have written is refused, so nothing can hide between the members.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from seedmask.errors import BundleError, SpecError, UserError
from seedmask.spec import ModelSpec, from_json

FORMAT: Final = 1
MAX_BYTES: Final = 1 << 28
_MEMBER: Final = re.compile(r"[a-z0-9_-]+(/[a-z0-9_-]+)*\.[a-z0-9]+\Z")


@dataclass(frozen=True)
class Bundle:
    """Opened bundle: `spec`; `batch`, examples per training step of its graphs; `files`, bytes by member name."""

    spec: ModelSpec
    batch: int
    files: Mapping[str, bytes]

    def file(self, name: str) -> bytes:
        """Return the bytes of member `name`. Raises BundleError, which lists the members there are."""
        if name not in self.files:
            raise BundleError(f"the bundle has no {name}; it has {', '.join(sorted(self.files)) or 'no graphs'}")
        return self.files[name]


def to_bytes(bundle: Bundle) -> bytes:
    """Return the zip file of `bundle`. Raises ValueError for an invalid member name."""
    for name in bundle.files:
        if not _MEMBER.match(name) or name in ("manifest.json", "spec.json"):
            raise ValueError(f"a member's name is like onnx/step.onnx, found {name!r}")
    members = dict(sorted({"spec.json": bundle.spec.canonical(), **bundle.files}.items()))
    manifest = {
        "format": FORMAT,
        "model": bundle.spec.digest.hex(),
        "batch": bundle.batch,
        "files": {n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in members.items()},
    }
    members = {"manifest.json": json.dumps(manifest, indent=1, sort_keys=True).encode(), **members}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix, wherever we run
            archive.writestr(info, data)
    return out.getvalue()


def from_bytes(data: bytes) -> Bundle:
    """Return the bundle in `data`. Raises BundleError, which says which check failed, or SpecError."""
    if len(data) > MAX_BYTES:
        raise BundleError(f"a bundle is at most {MAX_BYTES} bytes, found {len(data)}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            bundle = _read(archive, len(data))
        if to_bytes(bundle) != data:
            raise BundleError("not as seedmask writes it: names, order, dates, flags or bytes between the members")
        return bundle
    except (BundleError, SpecError):
        raise
    # zipfile and json raise a dozen kinds of exception for a damaged file; the caller need not tell them apart.
    except Exception as error:
        raise BundleError(f"not a bundle, or a damaged one: {error}") from None


def load(path: Path) -> Bundle:
    """Read the bundle file `path`. Raises UserError, which names the file."""
    try:
        return from_bytes(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the bundle {path}: {error.strerror}") from None
    except (BundleError, SpecError) as error:
        raise UserError(f"{path}: {error}") from None


def of_model(spec: ModelSpec, model: Path, named: Path | None) -> Bundle | None:
    """Return the bundle that belongs to a finished model, or None if there is none.

    `spec`: the model's; `model`: its file. The bundle is the file `named`; if that is None, the file beside `model`
    with the suffix .bundle, which is ignored if it belongs to another model. Raises UserError if `named` does.
    """
    beside = model.with_suffix(".bundle")
    if named is None and not beside.exists():
        return None
    found = load(named or beside)
    if found.spec.digest == spec.digest:
        return found
    if named is None:
        return None
    raise UserError(f"{named} is model {found.spec.digest.hex()[:12]}, {model} is of {spec.digest.hex()[:12]}")


def _read(archive: zipfile.ZipFile, size: int) -> Bundle:
    infos = {info.filename: info for info in archive.infolist()}
    if len(infos) != len(archive.infolist()):
        raise BundleError("a member occurs twice")
    if "manifest.json" not in infos:
        raise BundleError(f"no manifest.json; it has {', '.join(sorted(infos)) or 'nothing'}")
    if sum(info.file_size for info in infos.values()) > size:
        raise BundleError("the members overlap, or are larger than the bundle")
    for info in infos.values():
        if info.compress_type != zipfile.ZIP_STORED:
            raise BundleError(f"{info.filename} is compressed; members are stored")
    manifest: dict[str, Any] = json.loads(archive.read("manifest.json"))
    if manifest.get("format") != FORMAT:
        raise BundleError(f"bundle format {manifest.get('format')!r}; this program reads {FORMAT}")
    listed = manifest["files"]
    if set(listed) != set(infos) - {"manifest.json"}:
        odd = sorted(set(listed) ^ (set(infos) - {"manifest.json"}))
        raise BundleError(f"manifest and members disagree about {', '.join(odd)}")
    files = {}
    for name, entry in listed.items():
        content = archive.read(name)
        found = hashlib.sha256(content).hexdigest()
        if entry["bytes"] != len(content) or entry["sha256"] != found:
            raise BundleError(f"{name} has SHA-256 {found[:16]}..., the manifest says {str(entry['sha256'])[:16]}...")
        files[name] = content
    if "spec.json" not in files:
        raise BundleError("no spec.json")
    spec = from_json(files.pop("spec.json"))
    if spec.digest.hex() != manifest["model"]:
        raise BundleError(
            f"spec.json is model {spec.digest.hex()[:16]}..., the manifest says {manifest['model'][:16]}..."
        )
    batch = manifest["batch"]
    if type(batch) is not int or not 1 <= batch <= 1 << 16:
        raise BundleError(f"batch is 1 .. 65536, found {batch!r}")
    return Bundle(spec, batch, files)
