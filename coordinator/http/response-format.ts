/** What `response_format` asks for, as a constraint on tokens. Read next: ../grammar.ts. */
import type { Tokenizer } from '../../model/tokenizer.ts';
import type { TokenConstraint } from '../generation.ts';
import { GrammarConstraint } from '../grammar.ts';
import { jsonObjectGrammar, schemaGrammar, SchemaError } from '../json-grammar.ts';
import { ApiError } from './api-error.ts';
import type { ResponseFormat } from './requests.ts';

/** @throws ApiError 400 for a schema that uses what is not supported */
export function constraintOf(
  tokenizer: Tokenizer,
  format: ResponseFormat | null | undefined,
): TokenConstraint | undefined {
  switch (format?.type) {
    case undefined:
    case 'text':
      return undefined;
    case 'json_object':
      return new GrammarConstraint(jsonObjectGrammar(), tokenizer);
    case 'json_schema':
      return new GrammarConstraint(grammarOf(format.json_schema.schema ?? {}), tokenizer);
  }
}

function grammarOf(schema: Record<string, unknown>): ReturnType<typeof schemaGrammar> {
  try {
    return schemaGrammar(schema);
  } catch (error) {
    if (!(error instanceof SchemaError)) throw error;
    throw new ApiError(400, `response_format.json_schema.schema${error.path}: ${error.message}`, {
      param: 'response_format',
      cause: error,
    });
  }
}
