"""Words for the demo songs: four languages in four scripts, each word with the sounds a voice
sings for it.
"""

from dataclasses import dataclass

import numpy as np

# A phrase is `word=sounds word=sounds`, syllables parted by dots. Sounds are those of
# `synth.SOUNDS`:
# a e i o u, m n l r v z Z y w d b g, s S (as in shell) f h p t k. English and Greek "th" become
# their neighbours.
# Any opening followed by any ending is a sentence: openings are all of one person, number and
# gender.
OPENINGS = {
    "en": (
        "the=da river=ri.va",
        "the=da morning=mor.ning",
        "a=a lantern=lan.tan",
        "my=mai shadow=Sa.dou",
        "the=da ocean=ou.San",
        "your=yor window=win.dou",
        "the=da summer=sa.ma",
        "a=a stranger=strein.dZa",
    ),
    "ru": (
        "моя=ma.ya река=ri.ka",
        "белый=be.li снег=snek",
        "мой=moi город=go.rat",
        "тихий=ti.hi сад=sat",
        "лунный=lu.ni свет=svet",
        "старый=sta.ri дом=dom",
        "синий=si.ni кит=kit",
        "ночной=natS.noi лес=les",
    ),
    "el": (
        "το=to ποτάμι=po.ta.mi",
        "η=i θάλασσα=fa.la.sa",
        "ο=o άνεμος=a.ne.mos",
        "το=to φεγγάρι=fe.ga.ri",
        "μια=mya φωνή=fo.ni",
        "η=i νύχτα=nih.ta",
        "ένα=e.na πουλί=pu.li",
        "η=i καρδιά=kar.dya",
    ),
    "hi": (
        "मेरा=me.ra दिल=dil",
        "यह=ye बादल=ba.dal",
        "नीला=ni.la सागर=sa.gar",
        "मेरा=me.ra साथी=sa.ti",
        "सूरज=su.radZ भी=bi",
        "यह=ye पंछी=pan.tSi",
        "मेरा=me.ra गाँव=gav",
        "पूरा=pu.ra चाँद=tSand",
    ),
}
ENDINGS = {
    "en": (
        "sings=singz to=tu me=mi",
        "carries=ka.riz us=as home=houm",
        "waits=weits for=for rain=rein",
        "walks=woks alone=a.loun",
        "never=ne.va sleeps=slips",
        "follows=fo.louz the=da light=lait",
        "knows=nouz my=mai name=neim",
        "falls=folz like=laik snow=snou",
    ),
    "ru": (
        "поёт=pa.yot со=sa мной=mnoi",
        "ждёт=Zdot весну=ves.nu",
        "идёт=i.dyot домой=da.moi",
        "зовёт=za.vyot меня=mi.nya",
        "горит=ga.rit вдали=vda.li",
        "знает=zna.it путь=put",
        "видит=vi.dit сон=son",
        "помнит=pom.nit всё=fsyo",
    ),
    "el": (
        "με=me καλεί=ka.li",
        "τραγουδά=tra.gu.da",
        "γυρίζει=yi.ri.zi",
        "με=me ξέρει=kse.ri",
        "πετά=pe.ta ψηλά=psi.la",
        "φεύγει=fev.yi αργά=ar.ga",
        "περιμένει=pe.ri.me.ni",
        "ζει=zi μαζί=ma.zi μου=mu",
    ),
    "hi": (
        "गाता=ga.ta है=hai",
        "घर=gar जाता=dZa.ta है=hai",
        "नहीं=na.hi सोता=so.ta",
        "साथ=sat चलता=tSal.ta है=hai",
        "दूर=dur रहता=reh.ta है=hai",
        "खो=ko जाता=dZa.ta है=hai",
        "रोज़=roz आता=a.ta है=hai",
        "सब=sab सुनता=sun.ta है=hai",
    ),
}
LANGUAGES = tuple(OPENINGS)


@dataclass(frozen=True)
class LyricWord:
    """A word as it is written, and its syllables as sounds."""

    text: str
    syllables: tuple[str, ...]


def sung_lines(
    language: str, most_syllables: int, rng: np.random.Generator
) -> list[tuple[LyricWord, ...]]:
    """All sentences of at most `most_syllables` syllables, in random order."""
    short = []
    for opening in OPENINGS[language]:
        for ending in ENDINGS[language]:
            line = words_of(f"{opening} {ending}")
            if sum(len(word.syllables) for word in line) <= most_syllables:
                short.append(line)
    assert short, f"no line in {language!r} has {most_syllables} syllables or fewer"
    return [short[n] for n in rng.permutation(len(short))]


def words_of(phrase: str) -> tuple[LyricWord, ...]:
    """The words of a phrase as OPENINGS and ENDINGS write them."""
    pairs = [item.split("=") for item in phrase.split()]
    return tuple(LyricWord(text, tuple(sounds.split("."))) for text, sounds in pairs)
