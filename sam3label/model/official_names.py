"""What the official code calls each weight and what `Sam3VideoModel` calls it: a table, read by `official`.

Rows are (our template, official template, part). `{n}` and `{k}` stand for numbers, `{qkv}` for one of three
projections that the official code keeps in one tensor, `{p}` for "weight" or "bias"; `{rest}`, `{which}` and `{head}`
are the same on both sides. `{k-1}`, `{k+1}`, `{3k}` and `{3k+1}` count differently over there; "#" numbers the rows of
one tensor.

Names and shapes were compared with the module tree of facebookresearch/sam3 (99d02f2).
"""

from __future__ import annotations

from typing import Literal

Part = Literal["whole", "third", "transposed", "without class row", "rows"]

_TRUNK, _WORDS = "backbone.vision_backbone.trunk", "backbone.language_backbone.encoder"
_BLOCK = f"{_WORDS}.transformer.resblocks"
_FOUND, _ASKED = "transformer.decoder", "transformer.encoder"

DETECTOR: tuple[tuple[str, str, Part], ...] = (
    ("vision_encoder.backbone.embeddings.position_embeddings", f"{_TRUNK}.pos_embed", "without class row"),
    ("vision_encoder.backbone.embeddings.patch_embeddings.projection.{p}", f"{_TRUNK}.patch_embed.proj.{{p}}", "whole"),
    ("vision_encoder.backbone.layer_norm.{p}", f"{_TRUNK}.ln_pre.{{p}}", "whole"),
    (
        "vision_encoder.backbone.layers.{n}.attention.{qkv}_proj.{p}",
        f"{_TRUNK}.blocks.{{n}}.attn.qkv.{{p}}",
        "third",
    ),
    ("vision_encoder.backbone.layers.{n}.attention.o_proj.{p}", f"{_TRUNK}.blocks.{{n}}.attn.proj.{{p}}", "whole"),
    ("vision_encoder.backbone.layers.{n}.layer_norm{k}.{p}", f"{_TRUNK}.blocks.{{n}}.norm{{k}}.{{p}}", "whole"),
    ("vision_encoder.backbone.layers.{n}.mlp.{rest}", f"{_TRUNK}.blocks.{{n}}.mlp.{{rest}}", "whole"),
    ("text_encoder.text_model.embeddings.token_embedding.weight", f"{_WORDS}.token_embedding.weight", "whole"),
    ("text_encoder.text_model.embeddings.position_embedding.weight", f"{_WORDS}.positional_embedding", "whole"),
    (
        "text_encoder.text_model.encoder.layers.{n}.self_attn.{qkv}_proj.{p}",
        f"{_BLOCK}.{{n}}.attn.in_proj_{{p}}",
        "third",
    ),
    (
        "text_encoder.text_model.encoder.layers.{n}.self_attn.out_proj.{p}",
        f"{_BLOCK}.{{n}}.attn.out_proj.{{p}}",
        "whole",
    ),
    ("text_encoder.text_model.encoder.layers.{n}.layer_norm{k}.{p}", f"{_BLOCK}.{{n}}.ln_{{k}}.{{p}}", "whole"),
    ("text_encoder.text_model.encoder.layers.{n}.mlp.fc1.{p}", f"{_BLOCK}.{{n}}.mlp.c_fc.{{p}}", "whole"),
    ("text_encoder.text_model.encoder.layers.{n}.mlp.fc2.{p}", f"{_BLOCK}.{{n}}.mlp.c_proj.{{p}}", "whole"),
    ("text_encoder.text_model.final_layer_norm.{p}", f"{_WORDS}.ln_final.{{p}}", "whole"),
    ("text_encoder.text_projection.weight", f"{_WORDS}.text_projection", "transposed"),
    ("text_projection.{p}", "backbone.language_backbone.resizer.{p}", "whole"),
    (
        "geometry_encoder.layers.{n}.self_attn.{qkv}_proj.{p}",
        "geometry_encoder.encode.{n}.self_attn.in_proj_{p}",
        "third",
    ),
    (
        "geometry_encoder.layers.{n}.cross_attn.{qkv}_proj.{p}",
        "geometry_encoder.encode.{n}.cross_attn_image.in_proj_{p}",
        "third",
    ),
    ("geometry_encoder.layers.{n}.self_attn.o_proj.{p}", "geometry_encoder.encode.{n}.self_attn.out_proj.{p}", "whole"),
    (
        "geometry_encoder.layers.{n}.cross_attn.o_proj.{p}",
        "geometry_encoder.encode.{n}.cross_attn_image.out_proj.{p}",
        "whole",
    ),
    ("geometry_encoder.layers.{n}.layer_norm{k}.{p}", "geometry_encoder.encode.{n}.norm{k}.{p}", "whole"),
    ("geometry_encoder.layers.{n}.mlp.fc{k}.{p}", "geometry_encoder.encode.{n}.linear{k}.{p}", "whole"),
    ("geometry_encoder.vision_layer_norm.{p}", "geometry_encoder.img_pre_norm.{p}", "whole"),
    ("geometry_encoder.prompt_layer_norm.{p}", "geometry_encoder.norm.{p}", "whole"),
    ("geometry_encoder.output_layer_norm.{p}", "geometry_encoder.encode_norm.{p}", "whole"),
    ("geometry_encoder.{rest}", "geometry_encoder.{rest}", "whole"),
    ("detr_encoder.layers.{n}.self_attn.{qkv}_proj.{p}", f"{_ASKED}.layers.{{n}}.self_attn.in_proj_{{p}}", "third"),
    (
        "detr_encoder.layers.{n}.cross_attn.{qkv}_proj.{p}",
        f"{_ASKED}.layers.{{n}}.cross_attn_image.in_proj_{{p}}",
        "third",
    ),
    ("detr_encoder.layers.{n}.self_attn.o_proj.{p}", f"{_ASKED}.layers.{{n}}.self_attn.out_proj.{{p}}", "whole"),
    (
        "detr_encoder.layers.{n}.cross_attn.o_proj.{p}",
        f"{_ASKED}.layers.{{n}}.cross_attn_image.out_proj.{{p}}",
        "whole",
    ),
    ("detr_encoder.layers.{n}.layer_norm{k}.{p}", f"{_ASKED}.layers.{{n}}.norm{{k}}.{{p}}", "whole"),
    ("detr_encoder.layers.{n}.mlp.fc{k}.{p}", f"{_ASKED}.layers.{{n}}.linear{{k}}.{{p}}", "whole"),
    ("detr_decoder.layers.{n}.self_attn.{qkv}_proj.{p}", f"{_FOUND}.layers.{{n}}.self_attn.in_proj_{{p}}", "third"),
    ("detr_decoder.layers.{n}.text_cross_attn.{qkv}_proj.{p}", f"{_FOUND}.layers.{{n}}.ca_text.in_proj_{{p}}", "third"),
    (
        "detr_decoder.layers.{n}.vision_cross_attn.{qkv}_proj.{p}",
        f"{_FOUND}.layers.{{n}}.cross_attn.in_proj_{{p}}",
        "third",
    ),
    ("detr_decoder.layers.{n}.self_attn.o_proj.{p}", f"{_FOUND}.layers.{{n}}.self_attn.out_proj.{{p}}", "whole"),
    ("detr_decoder.layers.{n}.text_cross_attn.o_proj.{p}", f"{_FOUND}.layers.{{n}}.ca_text.out_proj.{{p}}", "whole"),
    (
        "detr_decoder.layers.{n}.vision_cross_attn.o_proj.{p}",
        f"{_FOUND}.layers.{{n}}.cross_attn.out_proj.{{p}}",
        "whole",
    ),
    ("detr_decoder.layers.{n}.vision_cross_attn_layer_norm.{p}", f"{_FOUND}.layers.{{n}}.norm1.{{p}}", "whole"),
    ("detr_decoder.layers.{n}.self_attn_layer_norm.{p}", f"{_FOUND}.layers.{{n}}.norm2.{{p}}", "whole"),
    ("detr_decoder.layers.{n}.mlp_layer_norm.{p}", f"{_FOUND}.layers.{{n}}.norm3.{{p}}", "whole"),
    ("detr_decoder.layers.{n}.text_cross_attn_layer_norm.{p}", f"{_FOUND}.layers.{{n}}.catext_norm.{{p}}", "whole"),
    ("detr_decoder.layers.{n}.mlp.fc{k}.{p}", f"{_FOUND}.layers.{{n}}.linear{{k}}.{{p}}", "whole"),
    ("detr_decoder.output_layer_norm.{p}", f"{_FOUND}.norm.{{p}}", "whole"),
    ("detr_decoder.presence_layer_norm.{p}", f"{_FOUND}.presence_token_out_norm.{{p}}", "whole"),
    ("detr_decoder.presence_head.layer{k}.{p}", f"{_FOUND}.presence_token_head.layers.{{k-1}}.{{p}}", "whole"),
    ("detr_decoder.box_head.layer{k}.{p}", f"{_FOUND}.bbox_embed.layers.{{k-1}}.{{p}}", "whole"),
    ("detr_decoder.box_rpb_embed_x.layer{k}.{p}", f"{_FOUND}.boxRPB_embed_x.layers.{{k-1}}.{{p}}", "whole"),
    ("detr_decoder.box_rpb_embed_y.layer{k}.{p}", f"{_FOUND}.boxRPB_embed_y.layers.{{k-1}}.{{p}}", "whole"),
    ("detr_decoder.ref_point_head.layer{k}.{p}", f"{_FOUND}.ref_point_head.layers.{{k-1}}.{{p}}", "whole"),
    ("detr_decoder.query_embed.weight", f"{_FOUND}.query_embed.weight", "whole"),
    ("detr_decoder.reference_points.weight", f"{_FOUND}.reference_points.weight", "whole"),
    ("detr_decoder.presence_token.weight", f"{_FOUND}.presence_token.weight", "whole"),
    ("mask_decoder.prompt_cross_attn.{qkv}_proj.{p}", "segmentation_head.cross_attend_prompt.in_proj_{p}", "third"),
    ("mask_decoder.prompt_cross_attn.o_proj.{p}", "segmentation_head.cross_attend_prompt.out_proj.{p}", "whole"),
    ("mask_decoder.prompt_cross_attn_norm.{p}", "segmentation_head.cross_attn_norm.{p}", "whole"),
    ("mask_decoder.mask_embedder.{rest}", "segmentation_head.mask_predictor.mask_embed.{rest}", "whole"),
    ("mask_decoder.instance_projection.{p}", "segmentation_head.instance_seg_head.{p}", "whole"),
    ("mask_decoder.semantic_projection.{p}", "segmentation_head.semantic_seg_head.{p}", "whole"),
    ("mask_decoder.pixel_decoder.{rest}", "segmentation_head.pixel_decoder.{rest}", "whole"),
    ("dot_product_scoring.text_mlp.layer{k}.{p}", "dot_prod_scoring.prompt_mlp.layers.{k-1}.{p}", "whole"),
    ("dot_product_scoring.text_mlp_out_norm.{p}", "dot_prod_scoring.prompt_mlp.out_norm.{p}", "whole"),
    ("dot_product_scoring.text_proj.{p}", "dot_prod_scoring.prompt_proj.{p}", "whole"),
    ("dot_product_scoring.query_proj.{p}", "dot_prod_scoring.hs_proj.{p}", "whole"),
)

# Both necks; both kinds of its first two have a part of another name.
NECK: tuple[tuple[str, str, Part], ...] = (
    ("fpn_layers.0.scale_layers.0.{p}", "0.dconv_2x2_0.{p}", "whole"),
    ("fpn_layers.0.scale_layers.2.{p}", "0.dconv_2x2_1.{p}", "whole"),
    ("fpn_layers.{n}.scale_layers.0.{p}", "{n}.dconv_2x2.{p}", "whole"),
    ("fpn_layers.{n}.proj1.{p}", "{n}.conv_1x1.{p}", "whole"),
    ("fpn_layers.{n}.proj2.{p}", "{n}.conv_3x3.{p}", "whole"),
)

_SAM, _MEMORY, _PROMPT = "sam_mask_decoder", "maskmem_backbone", "sam_prompt_encoder"
_GAUSSIAN = f"{_PROMPT}.pe_layer.positional_encoding_gaussian_matrix"
TRACKER: tuple[tuple[str, str, Part], ...] = (
    ("memory_temporal_positional_encoding", "maskmem_tpos_enc", "whole"),
    ("no_memory_embedding", "no_mem_embed", "whole"),
    ("no_memory_positional_encoding", "no_mem_pos_enc", "whole"),
    ("no_object_pointer", "no_obj_ptr", "whole"),
    ("occlusion_spatial_embedding_parameter", "no_obj_embed_spatial", "whole"),
    ("mask_downsample.{p}", "mask_downsample.{p}", "whole"),
    ("temporal_positional_encoding_projection_layer.{p}", "obj_ptr_tpos_proj.{p}", "whole"),
    ("object_pointer_proj.proj_in.{p}", "obj_ptr_proj.layers.0.{p}", "whole"),
    ("object_pointer_proj.layers.{k}.{p}", "obj_ptr_proj.layers.{k+1}.{p}", "whole"),
    ("object_pointer_proj.proj_out.{p}", "obj_ptr_proj.layers.2.{p}", "whole"),
    ("shared_image_embedding.positional_embedding", _GAUSSIAN, "whole"),
    ("prompt_encoder.shared_embedding.positional_embedding", _GAUSSIAN, "whole"),
    ("prompt_encoder.point_embed.weight", f"{_PROMPT}.point_embeddings.#.weight", "rows"),
    ("prompt_encoder.mask_embed.conv1.{p}", f"{_PROMPT}.mask_downscaling.0.{{p}}", "whole"),
    ("prompt_encoder.mask_embed.layer_norm1.{p}", f"{_PROMPT}.mask_downscaling.1.{{p}}", "whole"),
    ("prompt_encoder.mask_embed.conv2.{p}", f"{_PROMPT}.mask_downscaling.3.{{p}}", "whole"),
    ("prompt_encoder.mask_embed.layer_norm2.{p}", f"{_PROMPT}.mask_downscaling.4.{{p}}", "whole"),
    ("prompt_encoder.mask_embed.conv3.{p}", f"{_PROMPT}.mask_downscaling.6.{{p}}", "whole"),
    ("prompt_encoder.{rest}", f"{_PROMPT}.{{rest}}", "whole"),
    ("mask_decoder.upscale_conv1.{p}", f"{_SAM}.output_upscaling.0.{{p}}", "whole"),
    ("mask_decoder.upscale_layer_norm.{p}", f"{_SAM}.output_upscaling.1.{{p}}", "whole"),
    ("mask_decoder.upscale_conv2.{p}", f"{_SAM}.output_upscaling.3.{{p}}", "whole"),
    ("mask_decoder.transformer.layer_norm_final_attn.{p}", f"{_SAM}.transformer.norm_final_attn.{{p}}", "whole"),
    (
        "mask_decoder.transformer.layers.{n}.layer_norm{k}.{p}",
        f"{_SAM}.transformer.layers.{{n}}.norm{{k}}.{{p}}",
        "whole",
    ),
    ("mask_decoder.transformer.layers.{n}.mlp.proj_in.{p}", f"{_SAM}.transformer.layers.{{n}}.mlp.lin1.{{p}}", "whole"),
    (
        "mask_decoder.transformer.layers.{n}.mlp.proj_out.{p}",
        f"{_SAM}.transformer.layers.{{n}}.mlp.lin2.{{p}}",
        "whole",
    ),
    (
        "mask_decoder.transformer.layers.{n}.{which}.o_proj.{p}",
        f"{_SAM}.transformer.layers.{{n}}.{{which}}.out_proj.{{p}}",
        "whole",
    ),
    (
        "mask_decoder.transformer.final_attn_token_to_image.o_proj.{p}",
        f"{_SAM}.transformer.final_attn_token_to_image.out_proj.{{p}}",
        "whole",
    ),
    (
        "mask_decoder.output_hypernetworks_mlps.{n}.proj_in.{p}",
        f"{_SAM}.output_hypernetworks_mlps.{{n}}.layers.0.{{p}}",
        "whole",
    ),
    (
        "mask_decoder.output_hypernetworks_mlps.{n}.layers.{k}.{p}",
        f"{_SAM}.output_hypernetworks_mlps.{{n}}.layers.{{k+1}}.{{p}}",
        "whole",
    ),
    (
        "mask_decoder.output_hypernetworks_mlps.{n}.proj_out.{p}",
        f"{_SAM}.output_hypernetworks_mlps.{{n}}.layers.2.{{p}}",
        "whole",
    ),
    ("mask_decoder.{head}_head.proj_in.{p}", f"{_SAM}.{{head}}_head.layers.0.{{p}}", "whole"),
    ("mask_decoder.{head}_head.layers.{k}.{p}", f"{_SAM}.{{head}}_head.layers.{{k+1}}.{{p}}", "whole"),
    ("mask_decoder.{head}_head.proj_out.{p}", f"{_SAM}.{{head}}_head.layers.2.{{p}}", "whole"),
    ("mask_decoder.{rest}", f"{_SAM}.{{rest}}", "whole"),
    ("memory_attention.layer_norm.{p}", f"{_ASKED}.norm.{{p}}", "whole"),
    ("memory_attention.layers.{n}.layer_norm{k}.{p}", f"{_ASKED}.layers.{{n}}.norm{{k}}.{{p}}", "whole"),
    ("memory_attention.layers.{n}.{which}.o_proj.{p}", f"{_ASKED}.layers.{{n}}.{{which}}.out_proj.{{p}}", "whole"),
    ("memory_attention.{rest}", f"{_ASKED}.{{rest}}", "whole"),
    ("memory_encoder.feature_projection.{p}", f"{_MEMORY}.pix_feat_proj.{{p}}", "whole"),
    ("memory_encoder.projection.{p}", f"{_MEMORY}.out_proj.{{p}}", "whole"),
    (
        "memory_encoder.mask_downsampler.layers.{k}.conv.{p}",
        f"{_MEMORY}.mask_downsampler.encoder.{{3k}}.{{p}}",
        "whole",
    ),
    (
        "memory_encoder.mask_downsampler.layers.{k}.layer_norm.{p}",
        f"{_MEMORY}.mask_downsampler.encoder.{{3k+1}}.{{p}}",
        "whole",
    ),
    ("memory_encoder.mask_downsampler.final_conv.{p}", f"{_MEMORY}.mask_downsampler.encoder.12.{{p}}", "whole"),
    (
        "memory_encoder.memory_fuser.layers.{n}.depthwise_conv.{p}",
        f"{_MEMORY}.fuser.layers.{{n}}.dwconv.{{p}}",
        "whole",
    ),
    ("memory_encoder.memory_fuser.layers.{n}.layer_norm.{p}", f"{_MEMORY}.fuser.layers.{{n}}.norm.{{p}}", "whole"),
    (
        "memory_encoder.memory_fuser.layers.{n}.pointwise_conv{k}.{p}",
        f"{_MEMORY}.fuser.layers.{{n}}.pwconv{{k}}.{{p}}",
        "whole",
    ),
    ("memory_encoder.memory_fuser.layers.{n}.scale", f"{_MEMORY}.fuser.layers.{{n}}.gamma", "whole"),
)

SECTIONS = (
    ("detector_model.vision_encoder.neck.", "detector.backbone.vision_backbone.convs.", NECK),
    ("detector_model.", "detector.", DETECTOR),
    ("tracker_neck.", "detector.backbone.vision_backbone.sam2_convs.", NECK),
    ("tracker_model.", "tracker.", TRACKER),
)
