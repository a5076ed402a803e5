"""Which tokens stay and where the others go: tensors in, tensors out; torch only."""
