import numpy as np
import pytest

from causalmad import Inputs, open_model
from causalmad.covariates import covariates, predicted_classes
from causalmad.errors import InputsError
from causalmad.testing.toys import toy
from causalmad.testing.traces import untouched


@pytest.mark.parametrize("name", ["mlp", "conv", "gpt2", "bert"])
def test_the_class_is_the_argmax_of_the_logits_of_each_input_alone(name):
    made = toy(name, trusted=2, fresh=9)
    model = open_model(made.model, batch_size=4)
    with untouched(made.model, "classes"):
        found = covariates(("class", "length"), model, made.fresh)
    one_by_one = [int(predicted_classes(model, made.fresh[i])[0]) for i in range(9)]
    assert found["class"].tolist() == one_by_one
    assert found["length"].tolist() == made.fresh.lengths.tolist()


def test_columns_come_by_name_and_before_what_is_computed():
    made = toy("mlp", trusted=2, fresh=3)
    inputs = Inputs.of(made.fresh.main, columns={"source": ["a", "b", "a"], "length": [7, 8, 9]})
    found = covariates(("source", "length"), open_model(made.model), inputs)
    assert found["source"].tolist() == ["a", "b", "a"] and found["length"].tolist() == [7, 8, 9]
    assert predicted_classes(open_model(made.model), inputs[:0]).shape == (0,)


def test_a_missing_column_is_named_with_the_nearest():
    made = toy("mlp", trusted=2, fresh=3)
    inputs = Inputs.of(made.fresh.main, columns={"source": np.zeros(3)})
    with pytest.raises(InputsError) as error:
        covariates(("sorce",), open_model(made.model), inputs)
    assert len(error.value.tries) == 3 and error.value.tries[0] == "'source'"
