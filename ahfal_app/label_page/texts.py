"""All that the labelling page says, by language. Another language is one more table here.

Words in braces are filled in by the page. Every table has the keys of the English one, with the
same words in braces.
"""

from __future__ import annotations

_ENGLISH = {
    "title": "Label images",
    "loading": "Loading …",
    "needs_script": "This page needs JavaScript.",
    "as": "as {annotator}",
    "progress": "{answered} of {total} labelled",
    "settling_progress": "disagreements: {count}",
    "saving": "saving {count} …",
    "unsaved": "{count} not saved yet",
    "queue_read": "To label",
    "queue_settle": "Disagreements",
    "disagreements_wait": "Disagreements that wait for an adjudicator: {count}.",
    "question": "Which class is it?",
    "settle_question": "Which class stands?",
    "review_question": "Your answer",
    "guess": "The model's guess: {name}",
    "skip": "Nobody can tell",
    "unsure": "I am unsure",
    "comment": "Comment",
    "undo": "Undo",
    "own": "My answers",
    "earlier": "Earlier",
    "later": "Later",
    "back": "Back to labelling",
    "zoom_in": "Zoom in",
    "zoom_out": "Zoom out",
    "zoom_fit": "Whole image",
    "full_screen": "Full screen",
    "tools": "View",
    "image_alt": "Image {name}, to be labelled",
    "own_alt": "Image {name}, which you have answered",
    "caption": "{name}, cycle {cycle}",
    "number": "Image {number}",
    "image_loading": "Loading the image …",
    "image_failed": "This image cannot be shown. Reload the page to try again, or say that nobody "
    "can tell.",
    "empty": "Nothing is left to label. New images appear here by themselves.",
    "empty_settle": "There is no disagreement to settle. New ones appear here by themselves.",
    "elsewhere": "Images that are with other people: {count}.",
    "no_own": "You have not answered anything yet.",
    "said": "{name}: {label}",
    "skipped": "nobody can tell",
    "unsure_said": "{label} (unsure)",
    "reading": "{annotator}: {label}",
    "undone": "The last answer is taken back.",
    "changed": "{name}: changed to {label}.",
    "corrected": "{name}: corrected to {label}; it counts from the next cycle on.",
    "own_open": "Given {when}. It can be changed until the site's program collects it.",
    "own_correctable": "Given {when}, and collected. Another class counts from the next cycle on.",
    "own_closed": "Given {when}, and collected: it is not changed here any more.",
    "too_early": "That was not used: the next image was not on the screen yet.",
    "gone": "The image that was here is no longer with this site, or somebody else has it.",
    "no_answer": "The page's program does not answer. Is `ahfal label` still running? What was "
    "confirmed is kept; what is not yet saved is sent again.",
    "token": "Open the address that `ahfal label` has printed in another tab: then this one goes "
    "on, and what is not yet saved is sent again.",
    "error_answered": "You have answered this image already: undo or change that.",
    "error_collected": "The site's program has collected it already.",
    "error_withdrawn": "The site no longer has this image; the answer is not kept.",
    "error_not_open": "There is nothing to settle: readers agree, or you are one of them.",
    "error_correction": "Only a class of your own that stands can be corrected here, and only to "
    "another class.",
    "error_role": "Disagreements are settled in a page that was started with --adjudicator.",
    "error_type": "not application/json",
    "error_request": "no such request",
    "error_image": "no such image",
}

_GERMAN = {
    "title": "Bilder beurteilen",
    "loading": "Wird geladen …",
    "needs_script": "Diese Seite braucht JavaScript.",
    "as": "als {annotator}",
    "progress": "{answered} von {total} beurteilt",
    "settling_progress": "strittig: {count}",
    "saving": "{count} werden gespeichert …",
    "unsaved": "{count} noch nicht gespeichert",
    "queue_read": "Zu beurteilen",
    "queue_settle": "Strittig",
    "disagreements_wait": "Strittige Bilder, die auf eine Entscheidung warten: {count}.",
    "question": "Welche Klasse ist es?",
    "settle_question": "Welche Klasse gilt?",
    "review_question": "Ihre Antwort",
    "guess": "Vermutung des Modells: {name}",
    "skip": "Nicht zu beurteilen",
    "unsure": "Ich bin unsicher",
    "comment": "Bemerkung",
    "undo": "Rückgängig",
    "own": "Meine Antworten",
    "earlier": "Frühere",
    "later": "Spätere",
    "back": "Weiter beurteilen",
    "zoom_in": "Vergrößern",
    "zoom_out": "Verkleinern",
    "zoom_fit": "Ganzes Bild",
    "full_screen": "Vollbild",
    "tools": "Ansicht",
    "image_alt": "Bild {name}, noch zu beurteilen",
    "own_alt": "Bild {name}, von Ihnen beantwortet",
    "caption": "{name}, Zyklus {cycle}",
    "number": "Bild {number}",
    "image_loading": "Das Bild wird geladen …",
    "image_failed": "Dieses Bild lässt sich nicht anzeigen. Laden Sie die Seite neu, oder sagen "
    "Sie, dass es nicht zu beurteilen ist.",
    "empty": "Es ist nichts mehr zu beurteilen. Neue Bilder erscheinen hier von selbst.",
    "empty_settle": "Es ist nichts strittig. Neue strittige Bilder erscheinen hier von selbst.",
    "elsewhere": "Bilder, die gerade bei anderen sind: {count}.",
    "no_own": "Sie haben noch nichts beantwortet.",
    "said": "{name}: {label}",
    "skipped": "nicht zu beurteilen",
    "unsure_said": "{label} (unsicher)",
    "reading": "{annotator}: {label}",
    "undone": "Die letzte Antwort ist zurückgenommen.",
    "changed": "{name}: geändert in {label}.",
    "corrected": "{name}: berichtigt in {label}; das gilt ab dem nächsten Zyklus.",
    "own_open": "Gegeben {when}. Sie lässt sich ändern, bis das Programm sie abholt.",
    "own_correctable": "Gegeben {when} und abgeholt. Eine andere Klasse gilt ab dem nächsten "
    "Zyklus.",
    "own_closed": "Gegeben {when} und abgeholt: Hier lässt sie sich nicht mehr ändern.",
    "too_early": "Das wurde nicht verwendet: Das nächste Bild war noch nicht zu sehen.",
    "gone": "Das Bild von eben ist nicht mehr an diesem Standort, oder jemand anders hat es.",
    "no_answer": "Das Programm der Seite antwortet nicht. Läuft `ahfal label` noch? Was bestätigt "
    "wurde, ist gespeichert; der Rest wird noch einmal gesendet.",
    "token": "Öffnen Sie die Adresse, die `ahfal label` ausgegeben hat, in einem anderen Tab: Dann "
    "geht es hier weiter, und was noch nicht gespeichert ist, wird noch einmal gesendet.",
    "error_answered": "Sie haben dieses Bild schon beantwortet: Nehmen Sie das zurück, oder ändern "
    "Sie es.",
    "error_collected": "Das Programm hat die Antwort schon abgeholt.",
    "error_withdrawn": "Dieses Bild ist nicht mehr an diesem Standort; die Antwort wird nicht "
    "gespeichert.",
    "error_not_open": "Hier ist nichts zu entscheiden: Es besteht Einigkeit, oder Sie haben das "
    "Bild selbst beurteilt.",
    "error_correction": "Berichtigen lässt sich hier nur eine eigene Klasse, die gilt, und nur in "
    "eine andere Klasse.",
    "error_role": "Strittige Bilder entscheidet, wer die Seite mit --adjudicator gestartet hat.",
    "error_type": "nicht application/json",
    "error_request": "keine solche Anfrage",
    "error_image": "kein solches Bild",
}

#: By language; the first is taken where a browser wants none of them.
TEXTS = {"en": _ENGLISH, "de": _GERMAN}

#: Takes the language that the browser asks for.
AUTO = "auto"


def language_for(wanted: str, accepted: str) -> str:
    """Return the language of a page.

    Parameters
    ----------
    wanted : str
        A key of `TEXTS`, or `AUTO`.
    accepted : str
        What the browser asks for, as in the header `Accept-Language`.
    """
    if wanted != AUTO:
        return wanted
    asked: list[tuple[float, str]] = []
    for part in accepted.split(","):
        name, _, quality = part.strip().partition(";q=")
        try:
            weight = float(quality or 1)
        except ValueError:
            continue
        asked.append((-weight, name.split("-")[0].strip().lower()))
    known = [name for weight, name in sorted(asked, key=lambda a: a[0]) if name in TEXTS and weight]
    return known[0] if known else next(iter(TEXTS))
