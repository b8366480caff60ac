"""Images and labels: where they come from, how they are split, and the stream that trains.

`load` turns a word or a path into `Data`; everything else is how.
"""

from mixnas.data.augment import Augmentation
from mixnas.data.dataset import Data, load
from mixnas.data.preprocessing import Preprocessing

__all__ = ["Augmentation", "Data", "Preprocessing", "load"]
