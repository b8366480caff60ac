"""`Genotype`: a space as a vector of fixed length, which is what samplers cross and mutate."""

from collections.abc import Mapping
from random import Random

from mixnas.arch import Architecture
from mixnas.asktell.trial import Genes
from mixnas.space import SearchSpace


class Genotype:
    """The open genes of a space (those with a choice), each as an index into its choices.

    All genes of every block and mixer are there, active or not, so that every vector has the
    same length; `decode` reads the active ones only, so many vectors mean one architecture.

    Attributes:
        keys: the open genes, in the space's order.
        sizes: how many choices each has.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.keys = tuple(key for key, choices in space.genes.items() if len(choices) > 1)
        self.sizes = tuple(len(space.genes[key]) for key in self.keys)

    def decode(self, genes: Genes) -> Architecture:
        """Return the architecture that a vector means."""
        index = dict(zip(self.keys, genes, strict=True))
        return self.space.pick(lambda key, choices: choices[index.get(key, 0)])

    def encode(self, arch: Architecture, others: Genes) -> Genes:
        """Return the vector of an architecture; inactive genes are taken from ``others``."""
        active = self.active(arch)
        return tuple(active.get(key, gene) for key, gene in zip(self.keys, others, strict=True))

    def random(self, rng: Random) -> Genes:
        """Draw every gene uniformly."""
        return tuple(rng.randrange(size) for size in self.sizes)

    def mutant(self, genes: Genes, rng: Random) -> Genes:
        """Change one active gene to another of its choices."""
        active = self.active(self.decode(genes))
        places = [place for place, key in enumerate(self.keys) if key in active]
        if not places:
            return genes
        place = rng.choice(places)
        step = rng.randrange(1, self.sizes[place])
        changed = (genes[place] + step) % self.sizes[place]
        return (*genes[:place], changed, *genes[place + 1 :])

    def active(self, arch: Architecture) -> Mapping[str, int]:
        """Return the open genes that an architecture uses, each as the index of its choice."""
        values = self.space.genotype(arch)
        return {
            key: self.space.genes[key].index(value)
            for key, value in values.items()
            if len(self.space.genes[key]) > 1
        }
