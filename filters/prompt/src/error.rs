/// Why a body is not a request of its API. Such a body is routed by load and left to the engine,
/// which will answer 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The body is not UTF-8 text.
    #[error("body is not UTF-8 from byte {offset}")]
    NotUtf8 {
        /// First byte that is not.
        offset: usize,
    },
    /// The body is not JSON, or nested deeper than 128 levels.
    #[error("body is not JSON: {message}")]
    NotJson {
        /// What the parser says, with line and column.
        message: String,
    },
    /// The body is JSON but no object.
    #[error("body is not a JSON object")]
    NotAnObject,
    /// A field without which there is no prompt is missing.
    #[error("field {field} is missing")]
    MissingField {
        /// Its name.
        field: &'static str,
    },
    /// A field that decides the prompt or the routing has a type the engine does not accept.
    #[error("field {field} has the wrong type")]
    WrongType {
        /// Its name.
        field: &'static str,
    },
}

impl BodyError {
    /// A short, stable name for counters.
    pub fn reason(&self) -> &'static str {
        match self {
            BodyError::NotUtf8 { .. } => "body_not_utf8",
            BodyError::NotJson { .. } => "body_not_json",
            BodyError::NotAnObject => "body_not_an_object",
            BodyError::MissingField { .. } => "body_field_missing",
            BodyError::WrongType { .. } => "body_field_wrong_type",
        }
    }
}

/// Why a model's chat template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template does not compile.
    #[error("compile the chat template")]
    Syntax(#[source] minijinja::Error),
}

impl TemplateError {
    /// A short, stable name for counters.
    pub fn reason(&self) -> &'static str {
        match self {
            TemplateError::Syntax(_) => "template_syntax",
        }
    }
}

/// Why the prompt of a valid request is not predicted. The request is routed by load.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The prompt is a list of token ids.
    #[error("prompt is token ids")]
    TokenIds,
    /// Several prompts in one request: the engine runs each on its own.
    #[error("request has {count} prompts")]
    SeveralPrompts {
        /// How many.
        count: usize,
    },
    /// A prompt or a conversation without content: the engine answers 400.
    #[error("request has no prompt")]
    NoPrompt,
    /// The prompt is (partly) embeddings.
    #[error("prompt is embeddings")]
    PromptEmbeds,
    /// The engine would cut the prompt, by default from its start.
    #[error("request truncates its prompt")]
    TruncatesPrompt,
    /// The prompt's token ids come with `kv_transfer_params`.
    #[error("request forwards the token ids of its prompt")]
    ForwardedTokenIds,
    /// `mm_processor_kwargs` or `media_io_kwargs`, which an engine may or may not trust.
    #[error("request sets arguments of the media processor")]
    MediaKwargs,
    /// A completion with text behind it: the engine fills in by rules of the model's own.
    #[error("request has a suffix")]
    Suffix,
    /// The conversation's start is in the engine's memory.
    #[error("request goes on from a stored response")]
    PreviousResponse,
    /// The request names an adapter or a cache key in the engine's own terms.
    #[error("request has a cache namespace of the engine's own")]
    OwnNamespace,
    /// An item of a Responses input, or a block of an Anthropic message, that is not text.
    #[error("request has an item of type {kind}")]
    UnsupportedItem {
        /// Its `type`.
        kind: String,
    },
    /// The model's prompts come from code of the engine's, not from its chat template.
    #[error("model has a prompt format of its own: {format}")]
    ForeignFormat {
        /// Which one.
        format: &'static str,
        /// Its name for counters.
        reason: &'static str,
    },
    /// The request brings its own template, which the engine may or may not trust.
    #[error("request has its own chat template")]
    RequestChatTemplate,
    /// `chat_template_kwargs` names an argument of the rendering call itself.
    #[error("chat_template_kwargs sets {name}")]
    ReservedTemplateKwarg {
        /// Which one.
        name: String,
    },
    /// An image, audio or video part.
    #[error("message has a content part of type {kind}")]
    MediaPart {
        /// Its `type`.
        kind: String,
    },
    /// A content part of a type we do not know.
    #[error("message has a content part of unknown type {kind}")]
    UnknownPart {
        /// Its `type`.
        kind: String,
    },
    /// A message that is not shaped as the engine's schema says.
    #[error("message is malformed at {field}")]
    MalformedMessage {
        /// Where.
        field: &'static str,
    },
    /// A tool that is not shaped as the engine's schema says, or uses deferred loading.
    #[error("tool is malformed at {field}")]
    MalformedTool {
        /// Where.
        field: &'static str,
    },
    /// Tool-call arguments that Python reads and we do not (NaN, lone surrogates, deep nesting).
    #[error("tool call arguments are beyond our JSON parser")]
    ToolArguments,
    /// A number whose Python text we cannot know (an integer beyond 64 bits, or -0).
    #[error("number {value} may print differently in Python")]
    Number {
        /// Its value as a float.
        value: String,
    },
    /// The model has no chat template.
    #[error("model has no chat template")]
    NoChatTemplate,
    /// `continue_final_message` where transformers would refuse it.
    #[error("final message cannot be continued: {why}")]
    ContinueFinalMessage {
        /// Why.
        why: &'static str,
    },
    /// The template asks for the engine host's date.
    #[error("chat template reads the clock")]
    TemplateReadsClock,
    /// The template called `raise_exception`: the engine answers 400.
    #[error("chat template raised: {message}")]
    TemplateRaised {
        /// What the template says.
        message: String,
    },
    /// The template used up its instructions.
    #[error("chat template ran out of fuel")]
    OutOfFuel,
    /// The template wrote more than a multiple of the body.
    #[error("rendered prompt is larger than {limit_bytes} bytes")]
    OutputTooLarge {
        /// The limit for this body.
        limit_bytes: usize,
    },
    /// Any other error of the template.
    #[error("chat template failed: {message}")]
    TemplateFailed {
        /// What minijinja says.
        message: String,
    },
}

impl Refusal {
    /// A short, stable name for counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::TokenIds => "token_ids",
            Refusal::SeveralPrompts { .. } => "several_prompts",
            Refusal::NoPrompt => "no_prompt",
            Refusal::PromptEmbeds => "prompt_embeds",
            Refusal::TruncatesPrompt => "truncate_prompt_tokens",
            Refusal::ForwardedTokenIds => "forwarded_token_ids",
            Refusal::MediaKwargs => "media_kwargs",
            Refusal::Suffix => "suffix",
            Refusal::PreviousResponse => "previous_response",
            Refusal::OwnNamespace => "own_namespace",
            Refusal::UnsupportedItem { .. } => "unsupported_item",
            Refusal::ForeignFormat { reason, .. } => reason,
            Refusal::RequestChatTemplate => "request_chat_template",
            Refusal::ReservedTemplateKwarg { .. } => "reserved_template_kwarg",
            Refusal::MediaPart { .. } => "media_part",
            Refusal::UnknownPart { .. } => "unknown_part",
            Refusal::MalformedMessage { .. } => "malformed_message",
            Refusal::MalformedTool { .. } => "malformed_tool",
            Refusal::ToolArguments => "tool_arguments",
            Refusal::Number { .. } => "number",
            Refusal::NoChatTemplate => "no_chat_template",
            Refusal::ContinueFinalMessage { .. } => "continue_final_message",
            Refusal::TemplateReadsClock => "template_reads_clock",
            Refusal::TemplateRaised { .. } => "template_raised",
            Refusal::OutOfFuel => "template_out_of_fuel",
            Refusal::OutputTooLarge { .. } => "template_output_too_large",
            Refusal::TemplateFailed { .. } => "template_failed",
        }
    }
}
