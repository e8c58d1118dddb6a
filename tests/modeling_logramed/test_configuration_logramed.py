from logramed import LoGraMedConfig


def test_graph_hidden_size_is_that_of_the_model_unless_given_and_is_saved(tmp_path):
    assert LoGraMedConfig().graph_hidden_size is None
    LoGraMedConfig(graph_hidden_size=512).save_pretrained(tmp_path)
    assert LoGraMedConfig.from_pretrained(tmp_path).graph_hidden_size == 512
