"""How the embedded models are made.

Contents:
    sizes       the models' layers and widths
    labels      what a scene puts on each patch, and what [CLS] is to know
    tower       stage 1: a CLIP tower learns the labels of its patches, and its [CLS] the scene
    packing     many questions about one picture behind one visual prefix
    decoder     stage 2, beside stage 1: a Llama learns to answer from label embeddings in the place of features
    joint       stages 3 and 4: the projector learns to give those embeddings, then projector and decoder to answer
    running     steps, learning rates, several workers, checkpoints, the log
    growing     a deep decoder from the trained one, and its training: tiny-llava-deep
    export      the checkpoint in LLaVA's original format
"""
