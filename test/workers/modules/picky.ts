/** Fails, hangs or dies with the rows that say so; keeps a line of everything that it was shown. */
export default {
  on: { pupils: ["insert"] },
  timeoutSeconds: 0.5,
  async handle(
    events: ReadonlyArray<{ readonly row: { readonly name: string } | null }>,
    ctx: { append: (file: string, line: string) => Promise<void> },
  ) {
    for (const { row } of events) {
      const name = row?.name ?? ""
      await ctx.append("shown.txt", name)
      if (name === "throws") throw new Error("this one I do not like")
      if (name === "hangs") await new Promise(() => undefined)
      if (name === "dies") {
        setTimeout(() => {
          throw new Error("out of the blue")
        })
        await new Promise(() => undefined)
      }
      await ctx.append("done.txt", name)
    }
  },
}
