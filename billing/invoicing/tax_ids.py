"""Tax ids have a form and mostly a check digit; whether one is in force only its country's register knows."""

import re
from collections.abc import Callable

from stdnum.ch import uid
from stdnum.eu import vat as eu_vat
from stdnum.exceptions import ValidationError
from stdnum.gb import vat as gb_vat
from stdnum.jp import cn
from stdnum.no import mva
from stdnum.us import ein

from billing.errors import BadTaxId
from billing.invoicing.taxes import EU

EU_PREFIXES = {"GR": "EL"}
SWISS_TAX = re.compile(r"(MWST|TVA|IVA|TPV)$")


def checked(*, country: str, typed: str) -> str:
    """Return a tax id in the one form that we keep, or raise BadTaxId; of a country we do not know, as it was typed."""
    bare = re.sub(r"[\s.\-/]", "", typed).upper()
    if not bare:
        return ""
    try:
        if country in EU:
            prefix = EU_PREFIXES.get(country, country)
            return str(eu_vat.validate(bare if bare.startswith(prefix) else prefix + bare))
        return FORMS.get(country, _any)(bare)
    except ValidationError as error:
        raise BadTaxId(country=country, tax_id=typed) from error


def _any(bare: str) -> str:
    if not re.fullmatch(r"[0-9A-Z]{4,20}", bare):
        raise ValidationError
    return bare


FORMS: dict[str, Callable[[str], str]] = {
    "GB": lambda bare: "GB" + str(gb_vat.validate(bare.removeprefix("GB"))),
    "NO": lambda bare: str(mva.validate(bare.removeprefix("NO").removesuffix("MVA") + "MVA")),
    "CH": lambda bare: str(uid.validate(SWISS_TAX.sub("", bare))),
    "JP": lambda bare: "T" + str(cn.validate(bare.removeprefix("T"))),
    "US": lambda bare: str(ein.validate(bare)),
}
