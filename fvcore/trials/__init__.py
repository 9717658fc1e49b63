"""Trials: fixed ones as files that people exchange, sampled ones of a run, and what draws them."""

from fvcore.trials.draws import Draw as Draw
from fvcore.trials.draws import Splits as Splits
from fvcore.trials.draws import draws as draws
from fvcore.trials.draws import split as split
from fvcore.trials.fixed import PREFIXES as PREFIXES
from fvcore.trials.fixed import SEPARATORS as SEPARATORS
from fvcore.trials.fixed import FixedTrials as FixedTrials
from fvcore.trials.fixed import Meta as Meta
from fvcore.trials.fixed import PromptData as PromptData
from fvcore.trials.fixed import TemplatePart as TemplatePart
from fvcore.trials.fixed import Trial as Trial
from fvcore.trials.fixed import TrialRecord as TrialRecord
from fvcore.trials.fixed import TrialsError as TrialsError
from fvcore.trials.fixed import TrialsFile as TrialsFile
from fvcore.trials.fixed import WordPair as WordPair
from fvcore.trials.fixed import file_name as file_name
from fvcore.trials.fixed import labelled as labelled
from fvcore.trials.fixed import model_tag as model_tag
from fvcore.trials.fixed import parse as parse
from fvcore.trials.fixed import prompt_data as prompt_data
from fvcore.trials.fixed import read as read
from fvcore.trials.fixed import read_pairs as read_pairs
from fvcore.trials.fixed import same_draws as same_draws
from fvcore.trials.fixed import sample as sample
from fvcore.trials.fixed import text_of as text_of
from fvcore.trials.fixed import write as write
