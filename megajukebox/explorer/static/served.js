"use strict";
/* Empty on purpose: the pages' own server (explore serve) answers this address with what it can do, as `served`. */
