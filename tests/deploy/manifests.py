"""Holds `deploy/kuberay` against schemas: `make check-deploy`, which brings kubernetes-validate and hadolint.

What Kubernetes itself defines is checked against its schemas, pods of a RayJob included. What others define is checked
where a file with their CustomResourceDefinition is given, for those are too large to lie here: a cluster that has it
gives it (`kubectl get crd rayjobs.ray.io --output yaml`). An unknown key is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import yaml

FOLDER: Final = Path(__file__).parents[2] / "deploy" / "kuberay"
KUBERNETES: Final = "1.37"
NATIVE: Final = ("v1", "apps/v1", "networking.k8s.io/v1")


def strict(schema: Any) -> Any:
    """An OpenAPI schema of a definition as a JSON schema that takes no key it does not name."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def definitions(files: list[str]) -> dict[tuple[str, str], Any]:
    """API version and kind -> schema, of CustomResourceDefinitions."""
    found = {}
    for file in files:
        spec = yaml.safe_load(Path(file).read_text())["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod template of a document, as a pod of its own."""
    if isinstance(node, dict):
        if "containers" in node.get("spec", {}):
            yield {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {**node["metadata"], "name": "pod"},
                "spec": node["spec"],
            }
        for each in node.values():
            yield from pods(each)
    elif isinstance(node, list):
        for each in node:
            yield from pods(each)


def problems(document: dict[str, Any], schemas: dict[tuple[str, str], Any]) -> list[str]:
    """What a document breaks."""
    found = []
    for each in [document] if document["apiVersion"] in NATIVE else pods(document):
        try:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{'.'.join(map(str, error.path))}: {error.message}")
    if schema := schemas.get((document["apiVersion"], document["kind"])):
        errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
        found += [f"{error.json_path}: {error.message}" for error in errors]
    return found


def main() -> None:
    """Say what each document is checked against, and what it breaks; the arguments are definitions."""
    schemas, broken = definitions(sys.argv[1:]), 0
    for file in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            kind = document["apiVersion"], document["kind"]
            by = f"by Kubernetes {KUBERNETES}" if kind[0] in NATIVE else "by its definition"
            known = kind[0] in NATIVE or kind in schemas
            told = problems(document, schemas)
            print(f"{file.name}: {kind[1]}: {by if known else 'no definition was given: pods in it alone'}")
            print("".join(f"  {each}\n" for each in told), end="")
            broken += len(told)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
