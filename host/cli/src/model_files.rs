//! Where a model's files are, once they are here.

use std::path::PathBuf;

use anyhow::Context;

use crate::config::{Model, ModelSource};

/// The folder with the model's files; downloads them first where they come from a hub.
///
/// # Errors
/// When there is no model at the configured place.
pub(crate) fn folder(model: &Model) -> anyhow::Result<PathBuf> {
    match &model.source {
        ModelSource::Folder { path, revision } => {
            Ok(model::resolve(path, &model.name, revision.as_deref())?)
        }
        ModelSource::Hub { repository, revision } => {
            let revision = revision.as_deref().unwrap_or(model::DEFAULT_REVISION);
            download(repository, revision)
                .with_context(|| format!("download {repository} at revision {revision}"))
        }
    }
}

/// The files that describe a prompt; weights are none of ours.
#[cfg(feature = "hub")]
fn is_wanted(name: &str) -> bool {
    const NAMES: [&str; 7] = [
        "chat_template.jinja",
        "config.json",
        "special_tokens_map.json",
        "tekken.json",
        "tiktoken.model",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    NAMES.contains(&name) || (name.ends_with(".tiktoken") && !name.contains('/'))
}

/// Into the Hugging Face cache of this machine (`HF_HOME`), from `HF_ENDPOINT` or the public hub, with
/// the token that `hf auth login` left there if any.
#[cfg(feature = "hub")]
fn download(repository: &str, revision: &str) -> anyhow::Result<PathBuf> {
    use hf_hub::api::sync::ApiBuilder;
    use hf_hub::{Repo, RepoType};

    let api = ApiBuilder::from_env().with_progress(false).build()?;
    let repo = Repo::with_revision(repository.into(), RepoType::Model, revision.into());
    let repo = api.repo(repo);
    let files = repo.info()?.siblings;
    let mut folder = None;
    for file in files.iter().filter(|file| is_wanted(&file.rfilename)) {
        let path = repo.get(&file.rfilename).with_context(|| file.rfilename.clone())?;
        tracing::info!(file = file.rfilename, "model file");
        folder = path.parent().map(ToOwned::to_owned);
    }
    folder.with_context(|| format!("it has no tokenizer among its {} files", files.len()))
}

#[cfg(not(feature = "hub"))]
fn download(_repository: &str, _revision: &str) -> anyhow::Result<PathBuf> {
    anyhow::bail!("this build has no hub support (cargo feature `hub`)")
}
