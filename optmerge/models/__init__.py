"""Models: references to them, their tensors on disk, what each parameter is for, and the one resident copy.

    family = open_family("zoo/base", {"sentiment": "zoo/sentiment"}, relative_to=Path("."))
    resident = ResidentModel(family, device=pick_device("auto"), dtype=torch.float32)

`reference` finds folders, `mapped` and `checkpoint` read tensors, `adapter` puts LoRA on a base (merged, or as
factors), `mapping` ties disk tensors to module parameters, `roles` says what they are for, `family` opens a base and
experts that `validation` has found to fit, `resident` holds the model.
"""
