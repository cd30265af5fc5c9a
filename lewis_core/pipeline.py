"""All stages, in the order in which a run goes through them.

What each function takes and writes is said in its docstring; how it is cached, in :mod:`lewis_core.stages`.
"""

from lewis_core.stages import Stage

SERVICE = ("lewis_core.listener.service", "lewis_core.models.vlm", "lewis_core.prompts")
"""What a model service runs: its source decides the answers of every stage that asks one."""

RENDER_PHOTOS = Stage("render-photos", "lewis_core.pocket.photos:render_photos", isolated=True)
BUILD_CATALOG = Stage("build-catalog", "lewis_core.data.catalog:build_catalog", isolated=True)
SPLIT_CONCEPTS = Stage("split-concepts", "lewis_core.data.splits:split_concepts")
EMBED_IMAGES = Stage("embed-images", "lewis_core.retrieval.embedding:embed_images", isolated=True)
MINE_DISTRACTORS = Stage("mine-distractors", "lewis_core.retrieval.mining:mine_distractors")
BUILD_GAMES = Stage("build-games", "lewis_core.data.games:build_games")
IMPORT_GAMES = Stage("import-games", "lewis_core.data.exchange.games:import_games")
BUILD_DATASET = Stage("build-dataset", "lewis_core.data.datasets:build_dataset", isolated=True)
TRAIN_SPEAKER = Stage("train-speaker", "lewis_core.training.speaker:train_speaker", isolated=True, asks=SERVICE)
CHECK_TRAINING = Stage("check-training", "lewis_core.training.preflight:preflight_speaker", isolated=True)
CHECK_LISTENER_TRAINING = Stage(
    "check-listener-training", "lewis_core.training.preflight:preflight_listener", isolated=True
)
BUILD_MATCHES = Stage("build-matches", "lewis_core.data.matches:build_matches", isolated=True)
TRAIN_LISTENER = Stage("train-listener", "lewis_core.training.listener:train_listener", isolated=True)
DESCRIBE_CONCEPTS = Stage("describe-concepts", "lewis_core.descriptions.generate:describe_concepts", isolated=True)
INDEX_DATABASE = Stage("index-database", "lewis_core.retrieval.index:index_database", isolated=True)
PLAY_GAMES = Stage("play-games", "lewis_core.evaluation.game:play_games", isolated=True, asks=SERVICE)
EVALUATE_IDENTIFICATION = Stage(
    "evaluate-identification",
    "lewis_core.evaluation.identification:evaluate_identification",
    isolated=True,
    asks=SERVICE,
)
EVALUATE_RECOGNITION = Stage(
    "evaluate-recognition", "lewis_core.evaluation.recognition:evaluate_recognition", isolated=True, asks=SERVICE
)
EVALUATE_VQA = Stage("evaluate-vqa", "lewis_core.evaluation.vqa:evaluate_vqa", isolated=True, asks=SERVICE)
EVALUATE_DESCRIPTIONS = Stage("evaluate-descriptions", "lewis_core.evaluation.descriptions:evaluate_descriptions")
COMPARE_SPEAKERS = Stage("compare-speakers", "lewis_core.evaluation.compare:compare_speakers")
PLAY_BAGS = Stage("play-bags", "lewis_core.evaluation.analyses.bags:play_bags", isolated=True, asks=SERVICE)
COMPARE_LISTENERS = Stage("compare-listeners", "lewis_core.evaluation.analyses.bags:compare_listeners")
ANALYSE_UNCERTAINTY = Stage("analyse-uncertainty", "lewis_core.evaluation.analyses.uncertainty:analyse_uncertainty")
ANALYSE_HALLUCINATION = Stage(
    "analyse-hallucination", "lewis_core.evaluation.analyses.hallucination:analyse_hallucination"
)
FIND_EXAMPLES = Stage("find-examples", "lewis_core.evaluation.analyses.examples:find_examples")
COMPARE_VISUALLY = Stage("compare-visually", "lewis_core.evaluation.analyses.visual:compare_visually", isolated=True)
IMPORT_DESCRIPTIONS = Stage("import-descriptions", "lewis_core.descriptions.formats:import_descriptions")
JUDGE_DESCRIPTIONS = Stage("judge-descriptions", "lewis_core.descriptions.judge:judge_descriptions", isolated=True)
REFINE_DESCRIPTIONS = Stage("refine-descriptions", "lewis_core.descriptions.refine:refine_descriptions", isolated=True)
BUILD_REPORT = Stage("build-report", "lewis_core.report.build:build_report", isolated=True)

STAGES = {
    stage.name: stage
    for stage in (
        RENDER_PHOTOS,
        BUILD_CATALOG,
        SPLIT_CONCEPTS,
        EMBED_IMAGES,
        MINE_DISTRACTORS,
        BUILD_GAMES,
        IMPORT_GAMES,
        BUILD_DATASET,
        CHECK_TRAINING,
        TRAIN_SPEAKER,
        BUILD_MATCHES,
        CHECK_LISTENER_TRAINING,
        TRAIN_LISTENER,
        DESCRIBE_CONCEPTS,
        INDEX_DATABASE,
        PLAY_GAMES,
        EVALUATE_IDENTIFICATION,
        EVALUATE_RECOGNITION,
        EVALUATE_VQA,
        EVALUATE_DESCRIPTIONS,
        COMPARE_SPEAKERS,
        PLAY_BAGS,
        COMPARE_LISTENERS,
        ANALYSE_UNCERTAINTY,
        ANALYSE_HALLUCINATION,
        FIND_EXAMPLES,
        COMPARE_VISUALLY,
        IMPORT_DESCRIPTIONS,
        JUDGE_DESCRIPTIONS,
        REFINE_DESCRIPTIONS,
        BUILD_REPORT,
    )
}
