"""Tests of the clinical terms and of what a text is read to say of them."""

import subprocess
import sys

import pytest

from tests.eval.metrics.loading import METRICS_FOLDER, load_metric_module


terms = load_metric_module("medical_report", "clinical_terms")
statements = load_metric_module("medical_report", "clinical_statements")


def said(text: str) -> str:
    """Statements in short: "+mass -edema"."""
    pairs = statements.clinical_statements(text)
    return " ".join(sorted(f"{'+' if status == 'present' else '-'}{concept}" for concept, status in pairs))


# Terms


@pytest.mark.parametrize(
    ("text", "concept"),
    [
        ("pleural effusion", "pleural effusion"),
        ("Effusions", "pleural effusion"),
        ("enlarged heart", "cardiomegaly"),
        ("patchy opacities", "lung opacity"),
        ("pneumothoraces", "pneumothorax"),
        ("knee joint effusion", "joint effusion"),
        ("pericardial effusion", "pericardial effusion"),
        ("mass effect", "mass effect"),
        ("ground-glass opacity", "ground glass opacity"),
        ("Ground glass", "ground glass opacity"),
        ("brain metastases", "brain mass"),
        ("A PICC line.", "picc"),
        ("right-sided chest tubes", "chest tube"),
    ],
)
def test_synonyms_plurals_and_the_longest_spelling_name_a_concept(text, concept):
    assert said(text) == f"+{concept}"


@pytest.mark.parametrize("text", ["massive", "portable", "the patient", "", "drainage", "scarf", "infusion of fluids"])
def test_parts_of_words_and_other_words_name_nothing(text):
    assert said(text) == ""


def test_the_list_is_readable_and_without_contradictions():
    concepts = [concept for section in terms.FINDINGS.values() for concept in section]
    assert 100 <= len(concepts) <= 200
    assert len(set(concepts)) == len(concepts)
    for spelling, named in statements.SPELLINGS.items():
        assert len(named) == 1, spelling  # no spelling names two concepts
        assert " ".join(spelling) == " ".join(statements.split_words(" ".join(spelling)))
    assert set(terms.STRUCTURES) <= set(concepts)
    assert all(concept in statements.SPELLINGS[tuple(concept.split())] for concept in concepts)


# Negation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No pleural effusion or pneumothorax.", "-pleural effusion -pneumothorax"),
        ("Without evidence of pneumonia", "-pneumonia"),
        ("There is no evidence of consolidation, mass, or nodule.", "-consolidation -lung mass -pulmonary nodule"),
        ("Negative for pneumothorax, pleural effusion.", "-pleural effusion -pneumothorax"),
        ("The lungs are free of focal airspace disease.", "-lung opacity"),
        ("Neither edema nor consolidation is seen", "-consolidation -pulmonary edema"),
        ("Pneumothorax is absent.", "-pneumothorax"),
        ("The effusion has resolved.", "-pleural effusion"),
        ("Effusion and edema have completely resolved.", "-pleural effusion -pulmonary edema"),
        ("Resolved left effusion.", "-pleural effusion"),
        ("Effusion, edema, and mass are not seen.", "-lung mass -pleural effusion -pulmonary edema"),
        ("The effusion is no longer seen.", "-pleural effusion"),
        ("There is no longer an effusion.", "-pleural effusion"),
        ("The endotracheal tube has been removed.", "-endotracheal tube"),
        ("Interval removal of the chest tube.", "-chest tube"),
        ("Fracture has been ruled out.", "-fracture"),
        ("Pleural effusion: none.", "-pleural effusion"),
        ("Effusion, pneumothorax: none", "-pleural effusion -pneumothorax"),
        ("Pneumothorax: No", "-pneumothorax"),
        ("Fracture: absent", "-fracture"),
        ("No\npleural\neffusion.", "-pleural effusion"),  # a line break in the middle of a sentence
    ],
)
def test_negated_mentions_are_absent(text, expected):
    assert said(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No pneumothorax. Small effusion.", "+pleural effusion -pneumothorax"),
        ("No pneumothorax\n\nSmall effusion", "+pleural effusion -pneumothorax"),
        ("- No pneumothorax\n- Small effusion", "+pleural effusion -pneumothorax"),
        ("No pneumothorax: small effusion", "+pleural effusion -pneumothorax"),
        ("Cardiomegaly: stable. Effusion: none.", "+cardiomegaly -pleural effusion"),
        ("No pneumothorax; small effusion", "+pleural effusion -pneumothorax"),
        ("No pneumothorax but a small effusion", "+pleural effusion -pneumothorax"),
        ("No abnormality other than cardiomegaly", "+cardiomegaly"),
        ("No effusion, stable cardiomegaly", "+cardiomegaly -pleural effusion"),
        ("No pneumothorax and there is a small effusion", "+pleural effusion -pneumothorax"),
        ("Stable cardiomegaly, effusion has resolved", "+cardiomegaly -pleural effusion"),
        ("Cardiomegaly is stable and the effusion has resolved", "+cardiomegaly -pleural effusion"),
        ("Atelectasis (no pneumonia) and edema", "+atelectasis +pulmonary edema -pneumonia"),
        ("A 1.5 cm nodule without cavitation", "+pulmonary nodule -cavitation"),
    ],
)
def test_a_negation_ends_where_its_statement_ends(text, expected):
    assert said(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "No change in the effusion.",
        "No significant interval change in pleural effusion",
        "Effusion cannot be excluded.",
        "Effusion is not excluded",
        "The effusion has nearly resolved.",
        "Partially resolved effusion",
        "Possible effusion",
    ],
)
def test_what_is_not_denied_is_present(text):
    assert said(text) == "+pleural effusion"


def test_a_list_with_or_goes_on_past_an_adjective():
    text = "No focal consolidation, large pleural effusion, or pneumothorax is identified."
    assert said(text) == "-consolidation -pleural effusion -pneumothorax"


def test_a_report_can_say_both_of_one_concept():
    assert said("No right effusion. Small left effusion.") == "+pleural effusion -pleural effusion"


# Structures


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The heart is normal in size.", "-cardiomegaly"),
        ("Heart size within normal limits", "-cardiomegaly"),
        ("Normal heart size and clear lungs.", "-cardiomegaly -lung abnormality"),
        ("The heart is mildly enlarged.", "+cardiomegaly"),
        ("The heart is not enlarged.", "-cardiomegaly"),
        ("The heart is enlarged and the lungs are clear.", "+cardiomegaly -lung abnormality"),
        ("The lungs are otherwise clear.", "-lung abnormality"),
        ("The lungs are not clear.", "+lung abnormality"),
        ("Osseous structures are without acute abnormality.", "-bone abnormality"),
        ("No acute cardiopulmonary abnormality.", "-lung abnormality"),
        ("Cardiomediastinal silhouette is unremarkable.", "-cardiomegaly -mediastinal widening"),
        ("Lung volumes are low.", "+low lung volumes"),
        (
            "Heart size, mediastinal contour, and pulmonary vascularity are within normal limits.",
            "-cardiomegaly -mediastinal widening -pulmonary vascular congestion",
        ),
        ("Heart: mildly enlarged. Lungs: clear.", "+cardiomegaly -lung abnormality"),
        ("HEART SIZE: Within normal limits.", "-cardiomegaly"),
        ("Bones: No acute abnormality.", "-bone abnormality"),
        ("Lungs: a large nodule, normal heart", "+pulmonary nodule -cardiomegaly"),
        ("The heart is seen.", ""),
        ("Heart failure.", "+heart failure"),
    ],
)
def test_structures_called_normal_or_abnormal_are_statements(text, expected):
    assert said(text) == expected


def test_reading_imports_nothing_but_the_list():
    program = (
        "import sys; sys.path.insert(0, 'tests/eval/metrics'); from loading import load_metric_module; "
        "load_metric_module('medical_report', 'clinical_statements').clinical_statements('No mass.'); "
        "print([name for name in ('torch', 'numpy', 'evaluate', 'logramed') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=METRICS_FOLDER.parents[1], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
