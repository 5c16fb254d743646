"""The prose of manual pages: what is kept, what is left out, and that no page breaks the parser."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferd_training.data.roff import paragraphs

PAGE = r""".\" -*- coding: UTF-8 -*-
'\" t
.\"*****
.TH ECHO 1 "März 2022" "Werkzeuge" Befehle
.ds n 5
.de XX
Das ist ein \\$1 Makro.
..
.SH BEZEICHNUNG
echo \- gibt eine Zeile Text aus
.SH BESCHREIBUNG
Gibt die \fIZEICHENKETTE\fP(n) auf der Standardausgabe
aus, getrennt durch \(lqLeerzeichen\(rq. \" eine Anmerkung
.PP
Siehe \fB\-\-help\fP und
.BR printf (3),
.I "eine Seite"
weiter.
.TP
\fB\-n\fP
den Zeilenumbruch am Ende \(Fonicht\(Fc ausgeben
.TP
.B \-e
Maskierungen auswerten
.IP \(bu 2
Ein Punkt.
.nf
int main(void) { return 0; }
.fi
Nach dem Beispiel.
.if n \{\
Nur auf dem Bildschirm.
.\}
.ie t Nur im Druck.
.el Nur sonst.
.TS
l l.
eins	zwei
.TE
.ig
Nicht gezeigt.
..
.EX
$ echo
.EE
Ende.
"""


def test_a_page() -> None:
    assert list(paragraphs(PAGE)) == [
        "echo - gibt eine Zeile Text aus",
        "Gibt die ZEICHENKETTE(n) auf der Standardausgabe aus, getrennt durch “Leerzeichen”.",
        "Siehe --help und printf(3), eine Seite weiter.",
        "-n",
        "den Zeilenumbruch am Ende «nicht» ausgeben",
        "-e",
        "Maskierungen auswerten",
        "Ein Punkt.",
        "Nach dem Beispiel.",
        "Ende.",
    ]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"\fBfett\fR, \f[I]schief\f[R], \f(CWfest\fP", "fett, schief, fest"),
        (r"caf\('e na\[:i]ve ma\[~n]ana \[u0142]odz", "café naïve mañana łodz"),
        (r"10\ MB, 20\~MB, gar\%nicht, \&.so, a\|b\^c", "10 MB, 20 MB, garnicht, .so, abc"),
        (r"\s-2klein\s0 \s+1gross\s0 \s'8'acht\s0", "klein gross acht"),
        (r"\*(lqzitiert\*(rq \*[nichts]und \*Rso", "“zitiert” und so"),
        (r"\h'2n'ein\v'-1'ger\w'xx'ückt \n(.gund \n[x]aus", "eingerückt und aus"),
        (r"ein \e und \\ und \(rs", r"ein \ und \ und \\"[:-1]),
        (r"\[u110000]\[uD800]\[foo]\(zznichts", "nichts"),
        ("am Ende \\", "am Ende \\"),
        ("fort\\\ngesetzt", "fortgesetzt"),
        ('.B "a b" c ""', "a b c"),
        ('.BI "\\-\\-option=" "wert ""in"" eins"', '--option=wert "in" eins'),
        (".BR a\\ b c", "a bc"),
    ],
)
def test_escapes_and_arguments(source: str, text: str) -> None:
    assert list(paragraphs(source)) == [text]


@pytest.mark.parametrize("gap", ["", ".PP", ".br", ".SH ZWEI", ".RS 4", ".nf\nkein Text\n.fi"])
def test_what_ends_a_paragraph(gap: str) -> None:
    assert list(paragraphs(f"eins\n{gap}\nzwei\n")) == ["eins", "zwei"]


@pytest.mark.parametrize("nothing", [".ad l", ".nh", ".unbekannt eins", ".", "'", '.\\" Anmerkung', ".UE ."])
def test_what_does_not(nothing: str) -> None:
    assert list(paragraphs(f"eins\n{nothing}\nzwei\n")) == ["eins zwei"]


def test_a_line_that_begins_with_a_space_is_a_line_of_its_own() -> None:
    assert list(paragraphs("eins\n  zwei\ndrei")) == ["eins", "zwei drei"]


@pytest.mark.parametrize(
    "source",
    ["", ".so man2/open.2\n", ".Dd $Mdocdate$\n.Dt LS 1\n.Sh NAME\nText\n", ".nf\nohne Ende\n", ".de XX\nohne Ende\n"],
)
def test_pages_without_prose(source: str) -> None:
    assert list(paragraphs(source)) == []


ROFF = st.text(st.sampled_from("ab.'\\\" \n(){}[]fBnsuTPHIR0\t*é-"), max_size=80)


@given(ROFF | st.text(max_size=80))
def test_any_text_at_all_gives_lines_of_text(source: str) -> None:
    for paragraph in paragraphs(source):
        assert paragraph == " ".join(paragraph.split())
        assert paragraph
