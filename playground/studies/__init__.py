"""The paper's experiments about why and how to reduce, on the embedded model or on any other.

Contents:
    setting     what all of them are given: a model, questions, what the pictures show
    sweeps      layer, split, shallow, merge, positions: lists of cells for `vscan.compare`
    results     accuracies and paired differences of a sweep: its table
    charts      their pictures
    measures    numbers about attention maps
    dense       the dense model's layers, watched while it reads prompts
    attention   where [CLS] and the last prompt token look
    maps        the pictures of that
    lens        at which layer the answer settles
    layers      means by layer with their intervals: the tables of these two
    tables      tables as files
"""
