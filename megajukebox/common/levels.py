"""The levels of a jukebox, and the names of the folders and files by which its parts find each other."""

LEVELS = ("top", "middle", "bottom")  # coarsest codes first: the order in which a song is sampled
VQVAE_FOLDER = "vqvae"
PRIOR_FOLDERS = {"top": "top_prior", "middle": "middle_upsampler", "bottom": "bottom_upsampler"}
RUN_FOLDERS = {"vqvae": VQVAE_FOLDER, **PRIOR_FOLDERS}  # of the VQ-VAE and of each level's prior
COMPOSER_FOLDER = "composer"
REFINER_FOLDERS = {level: f"refiner_{level}" for level in LEVELS}
REFINED_TRACKS = {level: f"refined_{level}" for level in LEVELS}  # recordings beside a level's own
STUDENT_FOLDERS = {level: f"{level}_student" for level in LEVELS}
STUDENT_TABLE = (
    "student.json"  # in a student's folder: every grid order it learned, and which one is used
)
ALIGNMENT_FILE = "alignment.json"  # in a prior's folder: the head that follows the lyrics
