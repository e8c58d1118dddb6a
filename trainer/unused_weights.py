"""Weights of a model that no loss depends on."""

import torch


def freeze_unused_weights(model: torch.nn.Module, uses_graph_network: bool) -> None:
    """
    Set `requires_grad` off for weights of a LoGra-Med that no loss gives a gradient: those of the vision tower behind
    the last hidden state that is read and, without `uses_graph_network`, the graph network's.

    It changes no result. But DDP waits for the gradient of every weight that asks for one, and a checkpoint of FSDP2
    whose optimizer knows nothing of such a weight cannot be resumed.
    """
    unused = [module for name, module in model.named_modules() if name.endswith("graph_network")]
    unused = [] if uses_graph_network else unused
    for name, module in model.named_modules():
        if name.endswith("vision_tower"):
            unused += unused_tower_parts(module, model.config)
    for part in unused:
        part.requires_grad_(False)


def unused_tower_parts(tower: torch.nn.Module, config) -> list[torch.nn.Module | torch.nn.Parameter]:
    """Layers behind the last hidden state that `config` reads, what follows them, and embeddings of masked patches."""
    num_layers = config.vision_config.num_hidden_layers
    num_used = max(config.vision_feature_layer % (num_layers + 1), *config.connected_layers, 0)
    parts = [value for name, value in tower.named_parameters() if name.endswith("mask_token")]
    for module in tower.modules():
        children = [name for name, _ in module.named_children()]
        if "encoder" in children:  # what comes after it makes one vector of an image, which is not read
            parts += [module.get_submodule(name) for name in children[children.index("encoder") + 1 :]]
        elif isinstance(module, torch.nn.ModuleList) and len(module) == num_layers:
            parts += module[num_used:]
    return parts
