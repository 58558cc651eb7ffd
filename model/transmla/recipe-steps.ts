/**
 * The steps of the recipe that can be left out one by one, to see what each is worth. What takes the place of a step is
 * what the published method does there. Numbers are those of docs/conversion.md. Read next: recipe.ts.
 */

export const recipeSteps = {
  weights: 'tokens weigh what an error of their key or value does (1); without: all alike',
  unitary: 'complex mixes over KV heads (2); without: real ones',
  phase: 'pairs that lose RoPE are turned by their mean phase (3); without: not turned',
  slots: 'the pairs that lose most keep RoPE (4); without: the strongest of every frequency first',
  centring: 'the PCA is centred, the mean value becomes a bias (5); without: it is not',
  refit:
    'layers are fitted to the original one by one, each on the stream of those before it (7); without: all at once',
} as const;

export type RecipeStep = keyof typeof recipeSteps;
export const recipeStepNames: readonly RecipeStep[] = ['weights', 'unitary', 'phase', 'slots', 'centring', 'refit'];

/** Nothing left out. */
export const wholeRecipe: ReadonlySet<RecipeStep> = new Set();
