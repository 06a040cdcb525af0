import { it } from "vitest"
import { runSeeds } from "./seeds.ts"

// Two files, so that two seeds run at a time.
it("Postgres, four schools and the rules agree; every write has one verdict, every conflict its record", { timeout: 3_600_000 }, () => runSeeds(1, 2))
