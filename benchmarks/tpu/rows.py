"""The programs, models, chips and meshes for which `make tpu` compiles."""

from dataclasses import dataclass

GENERATOR = ("step", "prefill", "prime", "insert", "insert_primed", "release")
TOPOLOGIES = {
    "v5e": {"1x1": "v5e:2x2", "1x4": "v5e:2x2", "2x4": "v5e:2x4"},
    "v6e": {"1x1": "v6e:2x2", "1x4": "v6e:2x2", "2x4": "v6e:2x4"},
    "v5p": {"1x1": "v5p:2x2x1", "1x4": "v5p:2x2x1", "2x4": "v5p:2x2x2"},
}
"""The smallest arrangement of chips that holds a mesh; a single chip is one of several."""
INT8 = ("weights", "cache")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One program for one mesh of chips."""

    model: str
    program: str
    slots: int
    chip: str
    mesh: str
    int8: str = ""
    """What is kept as int8: `cache`, `weights`."""

    @property
    def name(self) -> str:
        """The name for `--only`, such as `mini-step-16-v5e-1x1` or `mini-step-16-v5e-1x1-weights`."""
        name = f"{self.model}-{self.program}-{self.slots}-{self.chip}-{self.mesh}"
        return f"{name}-{self.int8}" if self.int8 else name

    @property
    def topology(self) -> str:
        """The arrangement of chips, as JAX names it."""
        return TOPOLOGIES[self.chip][self.mesh]


def all_rows() -> tuple[Row, ...]:
    """Returns every row, the steps first."""
    rows = [
        Row(model=model, program="step", slots=slots, chip=chip, mesh=mesh, int8=int8)
        for chip, meshes in TOPOLOGIES.items()
        for mesh in meshes
        for model in ("mini", "mega")
        for slots in (16, 64)
        for int8 in (("", *INT8) if mesh == "1x1" else ("",))
    ]
    rows += [
        Row(model=model, program=program, slots=16, chip=chip, mesh=mesh)
        for chip, meshes in TOPOLOGIES.items()
        for mesh in meshes
        for model in ("mini", "mega")
        for program in GENERATOR[1:]
    ]
    for chip in TOPOLOGIES:
        rows += [
            Row(model=model, program="encode", slots=1, chip=chip, mesh="1x1") for model in ("mini", "mega")
        ]
        rows.append(Row(model="vqgan", program="decode", slots=4, chip=chip, mesh="1x1"))
    return tuple(rows)
