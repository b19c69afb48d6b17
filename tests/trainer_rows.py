"""What transformers' Trainer trains on while routing is counted."""

from torch.utils.data import Dataset

from tests.tiny import token_ids


class Rows(Dataset):
    """Random rows to train on, which are not those that are counted."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        ids = token_ids(index, 1)[0]
        return {"input_ids": ids, "labels": ids.clone()}
